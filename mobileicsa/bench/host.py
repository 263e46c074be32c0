"""`bench` on this machine: load, first token, prefill, decode, memory; every contender interleaved in one run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.exported import target_json
from mobileicsa.artifact.manifest import read_manifest, require_files
from mobileicsa.artifact.model import target_of
from mobileicsa.artifact.verify import describe_fallbacks
from mobileicsa.bench.baseline import DONE, write_float
from mobileicsa.bench.child import Child
from mobileicsa.bench.environment import environment
from mobileicsa.bench.figures import Runs, ratios
from mobileicsa.core.errors import EnvironmentFault, InputError, UsageError, VerificationError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.program.backend import backends as registered
from mobileicsa.program.backend import find_backend
from mobileicsa.program.frozen import FrozenModel

if TYPE_CHECKING:
    from mobileicsa.quantize.steps import Progress

TOKENS = 64  # of the prompt, and to generate, where the context has room for them
NO_ENERGY = "not measured: the host bench reads no energy counter"
FLOAT = "float"


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


def bench(
    folder: Path,
    *,
    backends: Sequence[str] | None = None,
    baseline_float: bool = False,
    prompt_tokens: int | None = None,
    generate_tokens: int | None = None,
    repeat: int = 5,
    threads: int | None = None,
    float_cache: Path | None = None,
    allow_fallback: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the artifact's back ends (default: all that are installed), the float baseline of each beside it.

    Contenders run in turn, `repeat` times after one warm-up, each in a process of its own. `float_cache` keeps the
    float exports for later calls; without it they live in a temporary folder. Top-level figures are those of the
    first back end that ran. What runs in float or outside although the target does not declare it is a
    VerificationError, so that no such figure passes for an integer one; `allow_fallback` measures and lists it.
    """
    manifest = read_manifest(folder)
    require_files(folder, manifest, layout.PLAN)
    plan = QuantPlan.from_json(read_json(folder / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES), layout.PLAN)
    target = target_of(manifest, None)
    room = target.context - len(plan.prefix_ids)
    prompt_tokens = min(TOKENS, room // 2) if prompt_tokens is None else prompt_tokens
    generate_tokens = min(TOKENS, room // 2) if generate_tokens is None else generate_tokens
    _check(target, room, prompt_tokens, generate_tokens, repeat, threads)
    chosen, skipped = _available(target, backends)
    step = progress.step if progress else _no_step
    placements = {name: _placement(folder, manifest, target, name, allow_fallback) for name in chosen}
    with tempfile.TemporaryDirectory(prefix="mobileicsa-bench-") as scratch:
        contenders = [_quantized(folder, manifest, plan, target, name) for name in chosen]
        if baseline_float:
            frozen = FrozenModel(plan, _weights(folder, manifest))
            for name in chosen:
                tick = step(f"write float32 for {name}", 1)
                written = write_float(frozen, target, find_backend(name), float_cache or Path(scratch))
                contenders.append(_float(written, plan, target, name))
                tick()
            del frozen
        runs = _race(contenders, plan, target, prompt_tokens, generate_tokens, repeat, threads, step)
    rows: dict[str, Any] = {name: {"skipped": reason} for name, reason in skipped.items()}
    for contender in contenders:
        row = runs[contender.name].summary() | contender.facts()
        row |= {"energy_mj_per_token": None, "energy_source": NO_ENERGY}
        if contender.name in chosen:
            row["placement"] = placements[contender.name]
            rows[contender.name] = row
        else:
            quantized = rows[contender.backend]
            quantized["float32"] = row
            quantized["ratio_to_float32"] = ratios(runs[contender.backend], runs[contender.name])
            quantized["ratio_to_float32"]["file_bytes"] = row["file_bytes"] / quantized["file_bytes"]
    first = {key: value for key, value in rows[chosen[0]].items() if key != "float32"}
    return {
        **first,
        "backend": chosen[0],
        "target": target.name,
        "prompt_tokens": prompt_tokens,
        "generate_tokens": generate_tokens,
        "repeat": repeat,
        "threads": threads,
        "backends": {name: rows[name] for name in (*chosen, *skipped)},
        "environment": environment(),
    }


def _check(
    target: Target, room: int, prompt_tokens: int, generate_tokens: int, repeat: int, threads: int | None
) -> None:
    for flag, value in (
        ("--prompt-tokens", prompt_tokens),
        ("--generate-tokens", generate_tokens),
        ("--repeat", repeat),
        ("--threads", 1 if threads is None else threads),
    ):
        if value < 1:
            raise UsageError(f"{flag} {value}: must be at least 1")
    if prompt_tokens + generate_tokens > room:
        raise UsageError(
            f"--prompt-tokens {prompt_tokens} and --generate-tokens {generate_tokens} exceed the {room} slots of "
            f"target {target.name}",
            hint=f"use at most {room} together",
        )


def _available(target: Target, wanted: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    unknown = sorted(set(wanted or ()) - set(target.backends))
    if unknown:
        raise InputError(f"--backend {unknown[0]}: not in this artifact; it has {', '.join(target.backends)}")
    known = registered()
    chosen, skipped = [], {}
    for name in target.backends:
        if wanted is not None and name not in wanted:
            continue
        reason = known[name].unavailable() if name in known else f"back end {name} is not installed"
        if reason is None:
            chosen.append(name)
        else:
            skipped[name] = reason
    if not chosen:
        raise EnvironmentFault("no back end can run here: " + "; ".join(f"{n}: {r}" for n, r in skipped.items()))
    return chosen, skipped


def _weights(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    require_files(folder, manifest, layout.WEIGHTS)
    return read_tensors(folder / layout.WEIGHTS)


def _quantized(folder: Path, manifest: dict[str, Any], plan: QuantPlan, target: Target, name: str) -> Contender:
    below = layout.backend_folder(target.name, name, manifest["default_target"])
    inside = {n: row["bytes"] for n, row in manifest["files"].items() if n.startswith(below + "/")}
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


def _placement(
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


def _float(folder: Path, plan: QuantPlan, target: Target, name: str) -> Contender:
    return Contender(
        name=f"{name} {FLOAT}",
        backend=name,
        folder=folder,
        files=json.loads((folder / DONE).read_text()),
        dtype="float32",
        prefix_length=len(plan.prefix_ids),
        skipped_weight_bytes=4 * _embedding_values(plan),
        cache_bytes=4 * _cache_values(plan, target),
    )


def _embedding_values(plan: QuantPlan) -> int:
    return 0 if plan.spec.tied_head else plan.spec.vocab_size * plan.spec.hidden_size


def _cache_values(plan: QuantPlan, target: Target) -> int:
    spec = plan.spec
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * target.context


def _race(
    contenders: list[Contender],
    plan: QuantPlan,
    target: Target,
    prompt_tokens: int,
    generate_tokens: int,
    repeat: int,
    threads: int | None,
    step: Callable[[str, int], Callable[[], None]],
) -> dict[str, Runs]:
    runs: dict[str, Runs] = {}
    sizes = {"prompt_tokens": prompt_tokens, "generate_tokens": generate_tokens}
    tick = step("bench", len(contenders) * (repeat + 3))
    with ExitStack() as stack:
        children = {c.name: stack.enter_context(Child(c.name)) for c in contenders}
        for contender in contenders:
            opened = children[contender.name].ask(
                "open",
                folder=str(contender.folder),
                backend=contender.backend,
                spec=plan.spec.to_json(),
                target=target_json(target),
                prefix_length=contender.prefix_length,
                dtype=contender.dtype,
                threads=threads,
            )
            runs[contender.name] = Runs(opened=opened, prompt_tokens=prompt_tokens)
            tick()
        for turn in range(repeat + 1):
            for contender in contenders:
                made = children[contender.name].ask("run", **sizes)
                if turn:  # the first is the warm-up
                    runs[contender.name].turns.append(made)
                tick()
        for contender in contenders:
            runs[contender.name].reloaded = children[contender.name].ask("reload")
            tick()
    return runs


def _no_step(title: str, total: int) -> Callable[[], None]:
    return lambda: None
