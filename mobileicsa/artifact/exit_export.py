"""An early-exit artifact's stages written for another target. Nothing is quantised again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.exit_program import golden_of, lower_stages, read_frozen_exits, staged_backend
from mobileicsa.artifact.exported import EXPORT_FILE, TARGET_FILE, target_json
from mobileicsa.core.target import Target
from mobileicsa.io.hashing import sha256_bytes, sha256_file
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.paths import check_output
from mobileicsa.io.staging import Staging
from mobileicsa.models.exit_files import EXITS
from mobileicsa.program.targets import check_scheme
from mobileicsa.quantize.steps import Progress


def export_exits(
    folder: Path, target: Target, output: Path, progress: Progress, *, overwrite: bool = False
) -> dict[str, Any]:
    """Into a new folder `output`; returns {"target", "backends": {name: files, facts, agreement}}. `agreement` is with
    the simulator of the same program. Raises Unsupported with the operator that a back end has no form of."""
    check_output(output, folder, overwrite=overwrite)
    for name in target.backends:
        staged_backend(name, target.name)
    frozen = read_frozen_exits(folder)
    check_scheme(frozen.plan.scheme, target)
    run = "export" + sha256_bytes(repr((sha256_file(folder / layout.MANIFEST), target)).encode())[:10]
    with OutputLock(output), Staging(output, run, resumable=False, flag=None) as staging:
        tick = progress.step("build the stages", 1)
        program = frozen.program(primitive=target.nonlinear == "primitive")
        golden = golden_of(program, frozen.golden["input"])
        tick()
        written = {}
        for name in target.backends:
            tick = progress.step(f"write {name} for {target.name}", 1)
            written[name] = lower_stages(program, target, name, staging.folder / name, golden, all_exits=True)
            tick()
        for name in (layout.CONFIG, EXITS):
            staging.copy(name, folder / name)
        staging.write_tensors(layout.GOLDEN, golden)
        made = {"target": target.name, "backends": written}
        staging.write_json(EXPORT_FILE, made)
        staging.write_json(TARGET_FILE, target_json(target))
        staging.commit(overwrite=overwrite)
    return made
