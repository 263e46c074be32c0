"""`bench` on this machine: load, first token, prefill, decode, memory; every contender interleaved in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.exported import target_json
from mobileicsa.artifact.manifest import read_manifest, require_files
from mobileicsa.artifact.model import target_of
from mobileicsa.bench import rapl
from mobileicsa.bench.child import Child
from mobileicsa.bench.contenders import (
    Contender,
    check_counts,
    floats,
    join_floats,
    placement,
    quantized,
    token_counts,
    top_level,
)
from mobileicsa.bench.environment import environment
from mobileicsa.bench.estimate import estimate, macs_per_token
from mobileicsa.bench.figures import Runs
from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.json_file import read_json
from mobileicsa.program.backend import backends as registered

if TYPE_CHECKING:
    from mobileicsa.quantize.steps import Progress

TOKENS = 64  # of the prompt, and to generate, where the context has room for them
RELOADS = 3


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
    prompt_tokens, generate_tokens = token_counts(plan, target, prompt_tokens, generate_tokens)
    check_counts(repeat, threads)
    chosen, skipped = _available(target, backends)
    step = progress.step if progress else _no_step
    placements = {name: placement(folder, manifest, target, name, allow_fallback) for name in chosen}
    with tempfile.TemporaryDirectory(prefix="mobileicsa-bench-") as scratch:
        contenders = [quantized(folder, manifest, plan, target, name) for name in chosen]
        if baseline_float:
            contenders += floats(folder, manifest, plan, target, chosen, float_cache or Path(scratch), step)
        runs = _race(contenders, plan, target, prompt_tokens, generate_tokens, repeat, threads, step)
    macs = macs_per_token(plan, target)
    rows: dict[str, Any] = {name: {"skipped": reason} for name, reason in skipped.items()}
    for contender in contenders:
        measured = runs[contender.name]
        row = measured.summary() | contender.facts() | rapl.energy(measured.opened, measured.turns)
        row["energy_estimate"] = estimate(row["bytes_per_token"], macs, contender.dtype)
        if contender.name in chosen:
            row["placement"] = placements[contender.name]
        rows[contender.name] = row
    join_floats(rows, contenders, runs)
    return {
        **top_level(rows, chosen[0]),
        "device": "host",
        "target": target.name,
        "prompt_tokens": prompt_tokens,
        "generate_tokens": generate_tokens,
        "repeat": repeat,
        "threads": threads,
        "backends": {name: rows[name] for name in (*chosen, *skipped)},
        "environment": environment(),
    }


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
            runs[contender.name].loads = [children[contender.name].ask("reload")["load_ms"] for _ in range(RELOADS)]
            tick()
    return runs


def _no_step(title: str, total: int) -> Callable[[], None]:
    return lambda: None
