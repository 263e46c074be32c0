"""What is inside an artifact, counted: encodings, operators of each file, bytes for each weight, where ops run."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import read_manifest, require_files
from mobileicsa.artifact.model import target_of
from mobileicsa.core.errors import MobileICSAError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.io.json_file import read_json
from mobileicsa.program.backend import find_backend
from mobileicsa.quantize.packed import packed_bytes
from mobileicsa.report.mixed import layers_by_path
from mobileicsa.report.sites import worst_edges

METHODS = ("decode", "prefill")
WORST = 5


def contents(folder: Path, *, edges: str = "") -> dict[str, Any]:
    """Everything that `mobileicsa inspect` says. `edges` is a regular expression for the names in the edge list."""
    manifest = read_manifest(folder)
    require_files(folder, manifest, layout.PLAN)
    plan = QuantPlan.from_json(read_json(folder / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES), layout.PLAN)
    report = read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)
    measured: dict[str, Any] = report["edges"]
    wanted = re.compile(edges)
    return {
        "folder": str(folder),
        "model": report["model"],
        "scheme": plan.scheme.name,
        "narrow_weights": plan.scheme.narrow_weights,
        "prefix_ids": list(plan.prefix_ids),
        "census": _census(plan),
        "promoted": layers_by_path(plan.promoted),
        "wide_inputs": layers_by_path(plan.scheme.wide_edges),
        "mixed": report.get("mixed"),
        "adapters": report.get("adapters", {}),
        "merged_adapter": report.get("merged_adapter"),
        "worst_edges": [{"edge": name, **edge} for name, edge in worst_edges(measured, WORST)],
        "targets": {
            target: {backend: _written(folder, manifest, plan, target, backend, row) for backend, row in used.items()}
            for target, used in report["targets"].items()
        },
        "edges": {
            name: {**encoding.to_json(), **_measured(measured.get(name))}
            for name, encoding in plan.edges.items()
            if wanted.search(name)
        },
        "weights": {name: {"bits": w.bits, "axis": 0, "narrow": w.narrow} for name, w in plan.weights.items()},
    }


def _measured(edge: dict[str, Any] | None) -> dict[str, Any]:
    return {} if edge is None else {name: edge[name] for name in ("role", "low", "high", "sqnr_db") if name in edge}


def _census(plan: QuantPlan) -> dict[str, Any]:
    """Encodings by width: {"int8": n, ...} of edges and of weights; inner edges only exist on primitive targets."""
    return {
        "edges": _counted(f"int{encoding.bits}" for encoding in plan.edges.values()),
        "weights": _counted(f"int{weight.bits}" for weight in plan.weights.values()),
        "decoder_weights": plan.spec.decoder_weight_count,
        "table_weights": _table_weights(plan),
        "packed_weights_bytes": packed_bytes(plan.spec, {name: weight.bits for name, weight in plan.weights.items()}),
    }


def _counted(words: Any) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _table_weights(plan: QuantPlan) -> int:
    """Values of the embedding table, and of a head of its own."""
    return plan.spec.vocab_size * plan.spec.hidden_size * (1 if plan.spec.tied_head else 2)


def _written(
    folder: Path,
    manifest: dict[str, Any],
    plan: QuantPlan,
    target: str,
    backend: str,
    row: dict[str, Any],
) -> dict[str, Any]:
    files: dict[str, int] = row["files"]
    # One copy of the tables is no decoder weight; all else in the file (scales, code, second copies) counts.
    beyond = max(layout.runtime_files(files).values()) - _table_weights(plan)
    return {
        "files": files,
        "bytes_per_decoder_weight": round(beyond / plan.spec.decoder_weight_count, 4),
        "operators": _operators(row["facts"]),
        "placement": row["facts"].get("placement") or _placement(folder, manifest, target, backend),
        "facts": row["facts"],
    }


def _operators(facts: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Histogram of each method's operators as they are written, most frequent first; a delegate counts as one."""
    methods = facts.get("methods", facts)
    found = {}
    for method in METHODS:
        row = methods.get(method)
        if isinstance(row, dict):
            ops = row.get("ops") or {"delegate": row.get("delegates", 0), **row.get("ops_outside_delegates", {})}
            found[method] = dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))
    return found


def _placement(folder: Path, manifest: dict[str, Any], target: str, backend: str) -> dict[str, Any]:
    """Kernels of a decode step by kind, found by opening the files, or {"unknown": reason}."""
    below = layout.backend_folder(target, backend, manifest["default_target"])
    try:
        found = find_backend(backend)
        reason = found.unavailable()
        if reason is not None:
            return {"unknown": reason}
        require_files(folder, manifest, below + "/")
        return found.placement(folder / below, target_of(manifest, target))
    except MobileICSAError as error:
        return {"unknown": error.message}
