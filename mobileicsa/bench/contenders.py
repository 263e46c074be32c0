"""The exported models that a bench compares: the artifact's back ends, and float32 on the same back ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import require_files
from mobileicsa.artifact.verify import describe_fallbacks
from mobileicsa.bench.baseline import DONE, write_float
from mobileicsa.bench.figures import Runs, ratios
from mobileicsa.core.errors import InputError, UsageError, VerificationError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.program.backend import find_backend
from mobileicsa.program.frozen import FrozenModel

FLOAT = "float"
TOKENS = 64  # of the prompt, and to generate, where the context has room for them
FLOAT_DTYPE = "float32"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One exported model in a folder. `cache_bytes` is what attention may read of the static cache at each step."""

    name: str
    backend: str
    folder: Path
    files: dict[str, int]
    dtype: str
    prefix_length: int
    skipped_weight_bytes: int
    cache_bytes: int

    def facts(self) -> dict[str, int]:
        # The largest file holds the weights; a decode step reads all of them but an untied embedding table.
        weights = max(self.files.values()) - self.skipped_weight_bytes
        return {"file_bytes": sum(self.files.values()), "bytes_per_token": weights + self.cache_bytes}


def quantized(folder: Path, manifest: dict[str, Any], plan: QuantPlan, target: Target, name: str) -> Contender:
    """The artifact's export for back end `name`."""
    below = layout.backend_folder(target.name, name, manifest["default_target"])
    prefix = below + "/"
    inside = {n.removeprefix(prefix): row["bytes"] for n, row in manifest["files"].items() if n.startswith(prefix)}
    files = layout.runtime_files(inside)
    if not files:
        raise InputError(f"{folder}: was not exported for {name}", hint="run `mobileicsa export` for that target")
    return Contender(
        name=name,
        backend=name,
        folder=folder / below,
        files=files,
        dtype="int8",
        prefix_length=len(plan.prefix_ids),
        skipped_weight_bytes=_embedding_values(plan),
        cache_bytes=_cache_values(plan, target),
    )


def floats(
    folder: Path,
    manifest: dict[str, Any],
    plan: QuantPlan,
    target: Target,
    names: list[str],
    cache: Path,
    step: Callable[[str, int], Callable[[], None]],
) -> list[Contender]:
    """The model in float32 for each back end, written below `cache` unless it is there."""
    frozen = FrozenModel(plan, weights(folder, manifest))
    made = []
    for name in names:
        tick = step(f"write float32 for {name}", 1)
        written = write_float(frozen, target, find_backend(name), cache)
        made.append(
            Contender(
                name=f"{name} {FLOAT}",
                backend=name,
                folder=written,
                files=json.loads((written / DONE).read_text()),
                dtype=FLOAT_DTYPE,
                prefix_length=len(plan.prefix_ids),
                skipped_weight_bytes=4 * _embedding_values(plan),
                cache_bytes=4 * _cache_values(plan, target),
            )
        )
        tick()
    return made


def weights(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    require_files(folder, manifest, layout.WEIGHTS)
    return read_tensors(folder / layout.WEIGHTS)


def placement(
    folder: Path, manifest: dict[str, Any], target: Target, name: str, allow_fallback: bool
) -> dict[str, Any]:
    """Where its operators run; checks the files' hashes, once for the whole bench."""
    below = layout.backend_folder(target.name, name, manifest["default_target"])
    require_files(folder, manifest, below + "/")
    found = find_backend(name).placement(folder / below, target)
    if found["fallbacks"] and not allow_fallback:
        raise VerificationError(
            f"{name}: {describe_fallbacks(found['fallbacks'], target.name)}",
            hint="measure it all the same, with the list kept in the result, with --allow-fallback",
        )
    return found


def token_counts(plan: QuantPlan, target: Target, prompt: int | None, generate: int | None) -> tuple[int, int]:
    """How many tokens to feed and to generate: 64 each where they fit, if the caller leaves it open."""
    room = target.context - len(plan.prefix_ids)
    prompt = min(TOKENS, room // 2) if prompt is None else prompt
    generate = min(TOKENS, room // 2) if generate is None else generate
    _at_least_one({"--prompt-tokens": prompt, "--generate-tokens": generate})
    if prompt + generate > room:
        raise UsageError(
            f"--prompt-tokens {prompt} and --generate-tokens {generate} exceed the {room} slots of "
            f"target {target.name}",
            hint=f"use at most {room} together",
        )
    return prompt, generate


def check_counts(repeat: int, threads: int | None) -> None:
    _at_least_one({"--repeat": repeat, "--threads": 1 if threads is None else threads})


def _at_least_one(flags: Mapping[str, int]) -> None:
    for flag, value in flags.items():
        if value < 1:
            raise UsageError(f"{flag} {value}: must be at least 1")


def join_floats(rows: dict[str, Any], contenders: Iterable[Contender], runs: Mapping[str, Runs]) -> None:
    """Move each float32 row into the row of its back end, with the ratio between the two."""
    for contender in contenders:
        if contender.dtype != FLOAT_DTYPE or contender.name not in rows:
            continue
        row, beside = rows.pop(contender.name), rows[contender.backend]
        beside["float32"] = row
        beside["ratio_to_float32"] = ratios(runs[contender.backend], runs[contender.name])
        beside["ratio_to_float32"]["file_bytes"] = row["file_bytes"] / beside["file_bytes"]


def top_level(rows: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """The figures of one back end, as they stand at the top of the result."""
    return {**{key: value for key, value in rows[backend].items() if key != "float32"}, "backend": backend}


def _embedding_values(plan: QuantPlan) -> int:
    return 0 if plan.spec.tied_head else plan.spec.vocab_size * plan.spec.hidden_size


def _cache_values(plan: QuantPlan, target: Target) -> int:
    spec = plan.spec
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * target.context
