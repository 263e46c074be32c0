"""An early-exit model's artifact: stage programs for every back end, the plan, thresholds refitted, golden vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileicsa.artifact import layout
from mobileicsa.artifact.exit_inputs import Inputs, read_inputs
from mobileicsa.artifact.exported import target_json
from mobileicsa.artifact.manifest import EARLY_EXIT, write_manifest
from mobileicsa.core.errors import EnvironmentFault, UsageError
from mobileicsa.core.plan import PLAN_FORMAT
from mobileicsa.core.scheme import QuantScheme, find_scheme
from mobileicsa.core.target import Target
from mobileicsa.io.hashing import sha256_bytes, sha256_file
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.paths import check_output, public_name
from mobileicsa.io.staging import Staging
from mobileicsa.models.early_exit_vit import ExitVit
from mobileicsa.models.exit_folder import CONFIG, EXITS, WEIGHTS, read_exits, read_model
from mobileicsa.program.backend import StagedBackend, StageSession, find_backend
from mobileicsa.program.early_exit import ExitTable, curve, softmax
from mobileicsa.program.exit_stages import (
    ALL_EXITS,
    ExitProgram,
    SimulatorStages,
    edges_of,
    export_stages,
    quantize_exits,
    stage_name,
    weights_of,
)
from mobileicsa.program.targets import DEFAULT_TARGET, check_scheme, find_target
from mobileicsa.quantize.steps import Progress

CONFIDENCES = "exit_confidences.safetensors"
FIGURE = "exits.svg"
INSTALL = "pip install 'mobileicsa[executorch]'"
GOLDEN_SAMPLES = 8
THRESHOLDS = tuple(step / 20 for step in range(21))
Draw = Callable[[dict[str, Any]], str]


@dataclass(frozen=True, kw_only=True)
class ExitOptions:
    """`calibration`: .npz with `inputs` (samples, channels, height, width) and, if wanted, `labels` (samples,)."""

    model: Path
    scheme: str
    output: Path
    calibration: Path | None = None
    target: str = DEFAULT_TARGET
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ExitPlan:
    """Everything checked before heavy work."""

    options: ExitOptions
    model: ExitVit
    exits: list[dict[str, Any]]
    scheme: QuantScheme
    target: Target
    inputs: Inputs

    def to_json(self) -> dict[str, Any]:
        return {
            "model": public_name(str(self.options.model)),
            "kind": EARLY_EXIT,
            "scheme": self.scheme.name,
            "target": self.target.name,
            "exits": self.exits,
            "calibration": self.inputs.facts,
            "output": str(self.options.output),
        }


def plan_exits(options: ExitOptions) -> ExitPlan:
    """Check everything; raises the error the user should see, writes nothing."""
    scheme, target = find_scheme(options.scheme), find_target(options.target)
    check_output(options.output, options.model, options.overwrite)
    check_scheme(scheme, target)
    if target.nonlinear == "primitive":
        raise UsageError(
            f"--target {target.name}: early-exit stages keep norms and softmax as float regions",
            hint=f"use --target {DEFAULT_TARGET}",
        )
    for name in target.backends:
        back_end = find_backend(name)
        reason = back_end.unavailable()
        if reason is not None:
            raise EnvironmentFault(f"--target {target.name}: {reason}")
        if not isinstance(back_end, StagedBackend):
            raise UsageError(f"--target {target.name}: back end {name} lowers no stages")
    if find_spec("torchao") is None:
        raise EnvironmentFault("torchao is not installed, by which early exits are quantised", hint=INSTALL)
    model = read_model(options.model)
    inputs = read_inputs(options.calibration, model.spec, options.seed)
    exits = read_exits(options.model, model.spec)
    return ExitPlan(options=options, model=model, exits=exits, scheme=scheme, target=target, inputs=inputs)


def build_exits(plan: ExitPlan, progress: Progress, draw: Draw) -> dict[str, Any]:
    """Quantise, export, record; returns report.json. `draw` makes an SVG of its curves, where there are labels."""
    options = plan.options
    identity = sha256_bytes(b"".join(sha256_file(options.model / n).encode() for n in (CONFIG, WEIGHTS, EXITS)))
    run = "exits" + sha256_bytes(f"{identity} {plan.to_json()}".encode())[:10]
    with OutputLock(options.output), Staging(options.output, run, resumable=False) as staging:
        report = _write(plan, staging, progress)
        if "curves" in report:
            staging.write_bytes(FIGURE, draw(report).encode())
        staging.write_json(layout.REPORT, report)
        write_manifest(
            staging.folder,
            {
                "kind": EARLY_EXIT,
                "mobileicsa_version": version("mobileicsa"),
                "scheme": plan.scheme.name,
                "model_identity": identity,
                "run": run,
                "default_target": plan.target.name,
                "targets": {plan.target.name: target_json(plan.target)},
            },
        )
        staging.commit(overwrite=options.overwrite)
    return report


def _write(plan: ExitPlan, staging: Staging, progress: Progress) -> dict[str, Any]:
    inputs = plan.inputs.inputs
    tick = progress.step("quantise the stages", 1)
    program = quantize_exits(plan.model, inputs, plan.scheme)
    tick()
    encodings, integers = weights_of(program)
    staging.write_tensors(layout.WEIGHTS, {**_rest(plan.model, encodings), **integers})
    staging.write_json(
        layout.PLAN,
        {
            "format": PLAN_FORMAT,
            "kind": EARLY_EXIT,
            "spec": plan.model.spec.to_json(),
            "scheme": plan.scheme.to_json(),
            "edges": {name: encoding.to_json() for name, encoding in edges_of(program).items()},
            "borders": sorted(program.borders),
            "weights": {name: {"bits": w.bits, "narrow": w.narrow} for name, w in encodings.items()},
            "provenance": {"calibration": plan.inputs.facts},
        },
    )
    staging.copy(layout.CONFIG, plan.options.model / CONFIG)
    staging.copy(EXITS, plan.options.model / EXITS)
    tick = progress.step("refit the thresholds", 1)
    before, after = _float_logits(plan.model, inputs), _logits(SimulatorStages(program), plan, inputs)
    table = _table(plan, before, after)
    staging.write_tensors(
        CONFIDENCES,
        {"float": torch.from_numpy(table.float_confidence), "integer": torch.from_numpy(table.confidence)},
    )
    tick()
    golden = _golden(program, inputs[:GOLDEN_SAMPLES])
    staging.write_tensors(layout.GOLDEN, golden)
    written = {name: _backend(plan, program, name, staging.folder, golden, progress) for name in plan.target.backends}
    return {
        **plan.to_json(),
        "output": public_name(str(plan.options.output)),
        "targets": {plan.target.name: written},
        "refitted": {str(t): table.refitted(t).tolist() for t in (0.5, 0.7, 0.8, 0.9)},
        **_curves(plan, table, before, after),
    }


def _rest(model: ExitVit, encodings: dict[str, Any]) -> dict[str, Tensor]:
    """What stays float: norms, biases, positions, tokens."""
    return {name: value for name, value in model.state_dict().items() if name not in encodings}


def _float_logits(model: ExitVit, inputs: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return torch.stack(model(inputs), dim=1).double().numpy()


def _logits(session: StageSession, plan: ExitPlan, inputs: Tensor) -> np.ndarray[Any, Any]:
    """(samples, E, classes) float64 of all exits."""
    found = []
    for sample in inputs:
        handed, rows = [sample[None].numpy()], []
        for exit in range(len(plan.exits)):
            logits, *handed = session.run(stage_name(exit), handed)
            rows.append(logits[0])
        found.append(rows)
    return np.array(found, dtype=np.float64)


def _table(plan: ExitPlan, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> ExitTable:
    macs = tuple(row["macs"] for row in plan.exits)
    return ExitTable(macs=macs, float_confidence=softmax(before).max(-1), confidence=softmax(after).max(-1))


def _curves(
    plan: ExitPlan, table: ExitTable, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Accuracy against mean MACs, float against integer with thresholds as they are and refitted; needs labels."""
    labels = plan.inputs.labels
    if labels is None:
        return {}
    right = [logits.argmax(-1) == labels[:, None] for logits in (before, after)]
    plain = [np.full(len(table.macs), threshold) for threshold in THRESHOLDS]
    refitted = [table.refitted(threshold) for threshold in THRESHOLDS]
    return {
        "curves": {
            "float": curve(table.float_confidence, right[0], table.macs, plain),
            "integer": curve(table.confidence, right[1], table.macs, refitted),
            "integer, float's thresholds": curve(table.confidence, right[1], table.macs, plain),
        },
        "thresholds": list(THRESHOLDS),
    }


def _golden(program: ExitProgram, inputs: Tensor) -> dict[str, Tensor]:
    """`input` and, for each stage, `stage_<e>.<k>`: what it gives, of all samples, in its order."""
    rows: dict[str, list[Tensor]] = {"input": list(inputs)}
    for sample in inputs:
        handed: tuple[Tensor, ...] = (sample[None],)
        for exit in range(len(program.stages)):
            given = program.run(exit, handed)
            for index, value in enumerate(given):
                rows.setdefault(f"{stage_name(exit)}.{index}", []).append(value[0])
            handed = given[1:]
    return {name: torch.stack(values) for name, values in rows.items()}


def _backend(
    plan: ExitPlan, program: ExitProgram, name: str, folder: Path, golden: dict[str, Tensor], progress: Progress
) -> dict[str, Any]:
    """Lower with one back end and compare it with the simulator."""
    tick = progress.step(f"write {name} for {plan.target.name}", 1)
    back_end = find_backend(name)
    assert isinstance(back_end, StagedBackend)
    programs = export_stages(program, plan.inputs.inputs[:1])
    if not back_end.separate_files:
        del programs[ALL_EXITS]
    written = back_end.write_stages(programs, plan.target, folder / name)
    session = back_end.open_stages(folder / name, [stage_name(e) for e in range(len(plan.exits))])
    agreement = agree(session, golden)
    session.close()
    tick()
    files = {
        path.relative_to(folder / name).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in written.files
    }
    return {"files": files, "facts": json.loads(json.dumps(written.facts)), "agreement": agreement}


def agree(session: StageSession, golden: dict[str, Tensor]) -> dict[str, Any]:
    """`equal_share` of the numbers that a back end gives exactly as the simulator, over whole chains of stages;
    `same_labels`: share of the exits that choose the same class; `largest_logit_difference`, a real number."""
    equal = total = labels = chosen = 0
    largest = 0.0
    stages = len({name.partition(".")[0] for name in golden}) - 1
    for sample in range(len(golden["input"])):
        handed = [golden["input"][sample][None].numpy()]
        for exit in range(stages):
            given = session.run(stage_name(exit), handed)
            for index, value in enumerate(given):
                wanted = golden[f"{stage_name(exit)}.{index}"][sample].numpy()
                equal, total = equal + int((value[0] == wanted).sum()), total + wanted.size
            wanted = golden[f"{stage_name(exit)}.0"][sample].numpy()
            largest = max(largest, float(np.abs(given[0][0] - wanted).max()))
            labels, chosen = labels + int(given[0][0].argmax() == wanted.argmax()), chosen + 1
            handed = given[1:]
    return {
        "equal_share": equal / total,
        "same_labels": labels / chosen,
        "largest_logit_difference": largest,
    }
