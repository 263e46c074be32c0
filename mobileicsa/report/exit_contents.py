"""What is inside an early-exit artifact, counted: stages, exits, encodings, operators of each file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.exit_program import Frozen, read_frozen_exits
from mobileicsa.io.json_file import read_json
from mobileicsa.models.exit_folder import read_exits


def exit_contents(folder: Path, *, edges: str = "") -> dict[str, Any]:
    """Everything that `mobileicsa inspect` says. `edges` is a regular expression for the names in the edge list."""
    frozen = read_frozen_exits(folder)
    report = read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)
    plan, wanted = frozen.plan, re.compile(edges)
    return {
        "folder": str(folder),
        "kind": frozen.manifest["kind"],
        "model": report["model"],
        "scheme": plan.scheme.name,
        "calibration": report["calibration"],
        "exits": read_exits(folder, plan.spec),
        "stages": _stages(frozen),
        "borders": {name: plan.edges[name].to_json() for name in plan.borders},
        "census": _census(frozen),
        "targets": {
            target: {name: _written(row) for name, row in used.items()} for target, used in report["targets"].items()
        },
        "edges": {name: each.to_json() for name, each in plan.edges.items() if wanted.search(name)},
        "inner_edges": {name: each.to_json() for name, each in plan.inner_edges.items() if wanted.search(name)},
        "weights": {name: {"bits": w.bits, "axis": 0, "narrow": w.narrow} for name, w in plan.weights.items()},
    }


def _stages(frozen: Frozen) -> list[dict[str, Any]]:
    """Blocks from 1, shapes of one sample, and how many encodings each stage has."""
    spec, rows = frozen.plan.spec, []
    for number, name in enumerate(frozen.names):
        first = spec.exits[number - 1] if number else 0
        given = [f"{name}.{index}" for index in range(3) if f"{name}.{index}" in frozen.golden]
        prefix = f"{name}/"
        rows.append(
            {
                "stage": name,
                "blocks": [first + 1, spec.exits[number]],
                "gives": [list(frozen.golden[each].shape[1:]) for each in given],
                "encodings": sum(edge.startswith(prefix) for edge in frozen.plan.edges),
                "inner_encodings": sum(edge.startswith(prefix) for edge in frozen.plan.inner_edges),
            }
        )
    return rows


def _census(frozen: Frozen) -> dict[str, Any]:
    """`inner_edges`: of the primitive form, which integer-only targets take."""
    plan = frozen.plan
    sizes = {name: prod(frozen.tensors[name].shape) for name in plan.weights}
    return {
        "edges": _counted(f"int{encoding.bits}" for encoding in plan.edges.values()),
        "inner_edges": _counted(f"int{encoding.bits}" for encoding in plan.inner_edges.values()),
        "weights": _counted(f"int{weight.bits}" for weight in plan.weights.values()),
        "weight_values": sum(sizes.values()),
        "packed_weights_bytes": sum(-(-size * plan.weights[name].bits // 8) for name, size in sizes.items()),
    }


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _written(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "files": {name: file["bytes"] for name, file in row["files"].items()},
        "agreement": row["agreement"],
        "operators": _operators(row["facts"]),
        "facts": row["facts"],
    }


def _operators(facts: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Of each program as it is written; a delegate counts as one."""
    found = dict(facts.get("program_operators", {}))
    for name, row in facts.items():
        if isinstance(row, dict) and ("ops" in row or "delegates" in row):
            found[name] = row.get("ops") or {"delegate": row["delegates"], **row.get("ops_outside_delegates", {})}
    return {name: dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))) for name, ops in found.items()}
