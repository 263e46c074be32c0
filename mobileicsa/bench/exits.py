"""`bench` of an early-exit artifact: how long every stage takes on each back end, and what accuracy that buys."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.exit_latency import TimedStages
from mobileicsa.artifact.exit_program import INPUT, Frozen, read_frozen_exits, staged_backend
from mobileicsa.artifact.manifest import require_files
from mobileicsa.artifact.model import target_of
from mobileicsa.bench.contenders import check_counts
from mobileicsa.bench.environment import environment
from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.core.target import Target
from mobileicsa.io.json_file import read_json
from mobileicsa.program.backend import cannot_run
from mobileicsa.program.early_exit import walk
from mobileicsa.program.exit_frozen import dequantized
from mobileicsa.program.exit_stages import export_float_stages
from mobileicsa.quantize.steps import Progress, Quiet

INTEGER, FLOAT = "integer", "float32"
QUIET = Quiet()


@dataclass
class Contender:
    """Stages of one back end, opened in `load_ms`."""

    backend: str
    kind: str
    session: TimedStages
    load_ms: float
    file_bytes: int


def bench_exits(
    folder: Path,
    *,
    backends: Sequence[str] | None = None,
    baseline_float: bool = False,
    repeat: int = 5,
    threads: int | None = None,
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Time every stage on the artifact's back ends, and the model in float32 beside each; the golden inputs go through
    all stages, contenders in turn, `repeat` times after one to warm up.

    Of each: `stages_ms`, `exits_ms` (medians of a stage, and up to each exit), `load_ms`, `file_bytes`; float in
    `float32` with `speed_up` by exit. `curves`, where the artifact has labels: accuracy, mean MACs and mean
    milliseconds by threshold, by back end, float and integer.
    """
    check_counts(repeat, threads)
    frozen = read_frozen_exits(folder)
    target = target_of(frozen.manifest, None)
    chosen, skipped = _available(target, backends)
    with tempfile.TemporaryDirectory(prefix="mobileicsa-bench-") as scratch:
        contenders = [_integers(frozen, name, threads) for name in chosen]
        if baseline_float:
            tick = progress.step("write the stages in float32", len(chosen))
            for name in chosen:
                contenders.append(_floats(frozen, target, name, Path(scratch) / name, threads))
                tick()
        _race(contenders, frozen, repeat, progress)
        for contender in contenders:
            contender.session.close()
    rows = _rows(contenders, frozen.names) | {name: {"skipped": reason} for name, reason in skipped.items()}
    return {
        "device": "host",
        "target": target.name,
        "backend": chosen[0],
        "repeat": repeat,
        "inputs": len(frozen.golden[INPUT]),
        "threads": threads,
        "backends": rows,
        "curves": curves(read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES), rows),
        "environment": environment(),
    }


def _available(target: Target, wanted: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    unknown = sorted(set(wanted or ()) - set(target.backends))
    if unknown:
        raise InputError(f"--backend {unknown[0]}: not in this artifact; it has {', '.join(target.backends)}")
    reasons = {name: cannot_run(name) for name in target.backends if wanted is None or name in wanted}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(skipped) == len(reasons):
        raise EnvironmentFault("no back end can run here: " + "; ".join(f"{n}: {r}" for n, r in skipped.items()))
    return [name for name in reasons if name not in skipped], skipped


def _integers(frozen: Frozen, name: str, threads: int | None) -> Contender:
    require_files(frozen.folder, frozen.manifest, f"{name}/")
    target = str(frozen.manifest["default_target"])
    return _opened(name, INTEGER, target, frozen.folder / name, frozen.names, threads)


def _floats(frozen: Frozen, target: Target, name: str, folder: Path, threads: int | None) -> Contender:
    """The same model with the real numbers that its integers stand for."""
    model = dequantized(frozen.plan, frozen.tensors)
    programs = export_float_stages(model, frozen.golden[INPUT][:1])
    staged_backend(name, target.name).write_stages(programs, target, folder)
    return _opened(name, FLOAT, target.name, folder, frozen.names, threads)


def _opened(name: str, kind: str, target: str, folder: Path, stages: Sequence[str], threads: int | None) -> Contender:
    back_end = staged_backend(name, target)
    back_end.open_stages(folder, stages, threads=threads).close()  # the first imports the runtime
    started = time.perf_counter()
    session = back_end.open_stages(folder, stages, threads=threads)
    load_ms = (time.perf_counter() - started) * 1000
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.stem != "all_exits")
    return Contender(name, kind, TimedStages(session), load_ms, size)


def _race(contenders: Sequence[Contender], frozen: Frozen, repeat: int, progress: Progress) -> None:
    tick = progress.step("bench", repeat + 1)
    for turn in range(repeat + 1):
        for contender in contenders:
            for sample in frozen.golden[INPUT]:
                for _ in walk(contender.session, frozen.names, sample.numpy()):
                    pass
            if not turn:
                contender.session.ms.clear()
        tick()


def _rows(contenders: Sequence[Contender], names: Sequence[str]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for contender in contenders:
        found = {
            **contender.session.latency(names),
            "load_ms": contender.load_ms,
            "file_bytes": contender.file_bytes,
        }
        if contender.kind == INTEGER:
            rows[contender.backend] = found
        else:
            integer = rows[contender.backend]
            integer[FLOAT] = found
            pairs = zip(found["exits_ms"], integer["exits_ms"], strict=True)
            integer["speed_up"] = [before / after for before, after in pairs]
    return rows


def curves(report: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report's curves with the milliseconds that inputs take on average, {back end: {integer, float32: points}}."""
    known = report.get("curves")
    if known is None:
        return None
    found: dict[str, Any] = {}
    for name, row in rows.items():
        for kind, points, times in (
            (INTEGER, known["integer"], row.get("exits_ms")),
            (FLOAT, known["float"], row.get(FLOAT, {}).get("exits_ms")),
        ):
            if times is not None:
                found.setdefault(name, {})[kind] = [
                    _point(threshold, point, times)
                    for threshold, point in zip(report["thresholds"], points, strict=True)
                ]
    return found


def _point(threshold: float, point: Mapping[str, Any], times: Sequence[float]) -> dict[str, float]:
    mean_ms = sum(share * ms for share, ms in zip(point["taken"], times, strict=True))
    return {"threshold": threshold, "accuracy": point["accuracy"], "mean_macs": point["mean_macs"], "mean_ms": mean_ms}
