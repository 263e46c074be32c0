"""The Python entry points: `quantize`, `export`, `run_method`; the command line only calls these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileicsa.artifact import exit_export
from mobileicsa.artifact.adapter_choice import chosen
from mobileicsa.artifact.adapter_plan import check_adapting
from mobileicsa.artifact.adapters import MAX_SATURATION
from mobileicsa.artifact.build import build
from mobileicsa.artifact.exits import ExitOptions, ExitPlan, build_exits, plan_exits
from mobileicsa.artifact.exported import export_artifact
from mobileicsa.artifact.plan_build import BuildOptions, BuildPlan, plan_build
from mobileicsa.bench.environment import environment
from mobileicsa.io.json_file import read_json, write_json
from mobileicsa.methods import runner
from mobileicsa.program.targets import find_target
from mobileicsa.quantize.steps import Progress, Quiet
from mobileicsa.report.exit_page import write_exit_page
from mobileicsa.report.exits import exits_figure
from mobileicsa.report.html import write_report
from mobileicsa.report.methods import result_figure


def quantize(
    model: str, scheme: str, output: str | Path, *, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """Quantise `model` (name, folder, GGUF file or hub id) into the artifact folder `output`; returns its report.

    `options` are the further fields of `BuildOptions` (recipe, calibration, effort, targets, seed, resume,
    budget_bytes, max_ppl_increase, adapters, merge_adapter, ...).
    """
    options["adapters"] = tuple(Path(adapter) for adapter in options.get("adapters", ()))
    if options.get("merge_adapter") is not None:
        options["merge_adapter"] = Path(options["merge_adapter"])
    if options.get("calibration") is not None:
        options["calibration"] = Path(options["calibration"])
    return build_from(plan_build(BuildOptions(model=model, scheme=scheme, output=Path(output), **options)), progress)


def quantize_exits(
    model: str | Path, scheme: str, output: str | Path, *, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """Quantise an early-exit model's folder into the artifact folder `output`; returns its report.

    `options` are the further fields of `ExitOptions` (calibration, target, seed, overwrite).
    """
    plan = plan_exits(ExitOptions(model=Path(model), scheme=scheme, output=Path(output), **options))
    return build_exits_from(plan, progress)


def build_exits_from(plan: ExitPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out a checked plan of `plan_exits`; returns the report."""
    return build_exits(plan, progress or Quiet(), exits_figure, write_exit_page)


def export_exits(
    folder: str | Path, target: str, output: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the stages of an early-exit artifact for another target; see `artifact.exit_export.export_exits`."""
    return exit_export.export_exits(
        Path(folder), find_target(target), Path(output), progress or Quiet(), overwrite=overwrite
    )


def build_from(plan: BuildPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out a checked plan; returns the report."""
    return build(plan, progress or Quiet(), _finish)


def _finish(folder: Path) -> None:
    path = folder / "report.json"
    report = read_json(path, max_bytes=256 << 20)
    write_json(path, {**report, "environment": environment()})
    write_report(folder)


def export(
    folder: str | Path,
    target: str,
    output: str | Path,
    *,
    layers: str | None = None,
    overwrite: bool = False,
    adapters: Sequence[str] = (),
    calibration: str | Path | None = None,
    max_adapter_saturation: float = MAX_SATURATION,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write an artifact's program, or a slice START:STOP of its layers, for another target of `mobileicsa targets`.

    `adapters`: names of the artifact's, or folders of new ones, that the program has room for; new ones are looked at
    on the text of `calibration` (see `artifact.adapter_choice`).
    """
    artifact, wanted, shown = Path(folder), find_target(target), progress or Quiet()
    if adapters:
        check_adapting([wanted])
    text = None if calibration is None else Path(calibration)
    made = chosen(artifact, adapters, text, max_adapter_saturation, shown) if adapters else []
    return export_artifact(artifact, wanted, Path(output), shown, layers=layers, overwrite=overwrite, adapters=made)


def run_method(
    name: str, size: str, output: str | Path, *, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """Run a research method of `mobileicsa methods` and its baselines; returns result.json's document.

    `options` are the further fields of `RunRequest` (overrides, overwrite, resume).
    """
    request = runner.RunRequest(name=name, size=size, output=Path(output), **options)
    return run_planned_method(runner.plan_run(request), progress)


def run_planned_method(plan: runner.RunPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out a plan of `mobileicsa.methods.runner.plan_run`."""
    return runner.run(plan, progress or Quiet(), environment=environment(), draw=result_figure)
