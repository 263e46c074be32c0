"""`verify` of an early-exit artifact: its files, and the golden vectors of each stage on each back end."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileicsa.artifact.exit_program import Frozen, agree, golden_of, lower_stages, read_frozen_exits
from mobileicsa.artifact.manifest import EARLY_EXIT, check_files, read_manifest
from mobileicsa.artifact.model import SIMULATOR, target_of
from mobileicsa.artifact.verdict import could_not_run
from mobileicsa.core.errors import InputError, MobileICSAError
from mobileicsa.core.target import Target
from mobileicsa.program.backend import StagedBackend, backends, cannot_run, find_backend
from mobileicsa.program.exit_stages import SimulatorStages
from mobileicsa.program.targets import find_target, target_of_backend
from mobileicsa.quantize.steps import Progress, Quiet

# Of a stage that takes the simulator's integers, a fused runtime gives nearly all of the simulator's: less is a defect.
# Over a chain of stages attention spreads every difference, so that its share is told and not judged.
LEAST_EQUAL = 0.75
LEAST_SAME_LABELS = 0.9
QUIET = Quiet()


def verify_exits(
    folder: Path, *, only: Sequence[str] | None = None, target: str | None = None, progress: Progress = QUIET
) -> dict[str, Any]:
    """Check hashes, and replay the golden vectors of every stage.

    `only` names the back ends (also "simulator"); None means all of the artifact's target. One that the artifact was
    not exported for is lowered first, for `target` or the one it is for, and compared with the simulator of the same
    program. One that is not installed is reported as skipped. "ok" is False when a file or a back end fails.
    """
    manifest = read_manifest(folder, EARLY_EXIT)
    problems = check_files(folder, manifest)
    result: dict[str, Any] = {"ok": not problems, "problems": problems, "backends": {}}
    if problems:
        return result
    default = target_of(manifest, None)
    asked = only or (SIMULATOR, *(default if target is None else find_target(target)).backends)
    known = (SIMULATOR, *backends())
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise InputError(f"--backend {unknown[0]}: is unknown; known are {', '.join(known)}")
    frozen = read_frozen_exits(folder)
    for name in dict.fromkeys(asked):
        tick = progress.step(f"verify {name}", 1)
        result["backends"][name] = _row(frozen, name, default, target)
        tick()
    missing = could_not_run(result["backends"], only)
    problems += missing
    result["ok"] = not missing and all(row.get("ok", True) for row in result["backends"].values())
    return result


def _row(frozen: Frozen, name: str, default: Target, wanted: str | None) -> dict[str, Any]:
    reason = None if name == SIMULATOR else cannot_run(name)
    if reason is not None:
        return {"skipped": reason}
    own = name in (SIMULATOR, *default.backends) and wanted in (None, default.name)
    try:
        return _judged(_own(frozen, name, default) if own else _lowered(frozen, name, wanted), name)
    except MobileICSAError as error:
        return {"ok": False, "error": error.message}


def _own(frozen: Frozen, name: str, target: Target) -> dict[str, Any]:
    if name == SIMULATOR:
        return agree(SimulatorStages(frozen.program(primitive=target.nonlinear == "primitive")), frozen.golden)
    back_end = find_backend(name)
    if not isinstance(back_end, StagedBackend):
        raise InputError(f"--backend {name}: lowers no stages of an early-exit model")
    session = back_end.open_stages(frozen.folder / name, frozen.names)
    found = agree(session, frozen.golden)
    session.close()
    return found


def _lowered(frozen: Frozen, name: str, wanted: str | None) -> dict[str, Any]:
    """Against the simulator of the same program."""
    if name == SIMULATOR:
        target = find_target(str(wanted))
    else:
        target = target_of_backend(name) if wanted is None else find_target(wanted)
        if name not in target.backends:
            raise InputError(f"--target {target.name}: is written by {', '.join(target.backends)}, not by {name}")
    program = frozen.program(primitive=target.nonlinear == "primitive")
    golden = golden_of(program, frozen.golden["input"])
    if name == SIMULATOR:
        found = agree(SimulatorStages(program), golden)
    else:
        with tempfile.TemporaryDirectory(prefix="mobileicsa-verify-") as scratch:
            found = lower_stages(program, target, name, Path(scratch), golden)["agreement"]
    return {**found, "target": target.name}


def _judged(row: dict[str, Any], name: str) -> dict[str, Any]:
    needed = 1.0 if name == SIMULATOR else LEAST_EQUAL
    missed = [
        f"stage {number}: {stage['equal_share']:.1%} equal numbers, {needed:.0%} needed"
        for number, stage in enumerate(row["stages"])
        if stage["equal_share"] < needed
    ]
    if row["same_labels"] < LEAST_SAME_LABELS:
        missed.append(f"{row['same_labels']:.1%} of the exits choose the same class, {LEAST_SAME_LABELS:.0%} needed")
    reason = {"reason": "; ".join(missed)} if missed else {}
    return {"ok": not missed, **row, "needed_equal_share": needed, **reason}
