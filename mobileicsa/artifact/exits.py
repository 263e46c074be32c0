"""An early-exit model's artifact: stage programs for every back end, the plan, thresholds refitted, golden vectors."""

from __future__ import annotations

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
from mobileicsa.artifact.exit_program import golden_of, lower_stages, stage_names, staged_backend
from mobileicsa.artifact.exported import target_json
from mobileicsa.artifact.manifest import EARLY_EXIT, write_manifest
from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.core.plan import PLAN_FORMAT
from mobileicsa.core.scheme import QuantScheme, find_scheme
from mobileicsa.core.target import Target
from mobileicsa.io.hashing import sha256_bytes, sha256_file
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.paths import check_output, public_name
from mobileicsa.io.staging import Staging
from mobileicsa.models.early_exit_vit import ExitVit
from mobileicsa.models.exit_files import CONFIG, EXITS, WEIGHTS
from mobileicsa.models.exit_folder import read_exits, read_model
from mobileicsa.program.backend import StageSession
from mobileicsa.program.early_exit import ExitTable, curve, softmax, walk
from mobileicsa.program.exit_frozen import StagePlan
from mobileicsa.program.exit_stages import SimulatorStages, edges_of, quantize_exits, weights_of
from mobileicsa.program.targets import DEFAULT_TARGET, check_scheme, find_target
from mobileicsa.quantize.steps import Progress

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
    for name in target.backends:
        staged_backend(name, target.name)
    if find_spec("torchao") is None:
        raise EnvironmentFault("torchao is not installed, by which early exits are quantised", hint=INSTALL)
    model = read_model(options.model)
    inputs = read_inputs(options.calibration, model.spec, options.seed)
    exits = read_exits(options.model, model.spec)
    return ExitPlan(options=options, model=model, exits=exits, scheme=scheme, target=target, inputs=inputs)


def build_exits(plan: ExitPlan, progress: Progress, draw: Draw, finish: Callable[[Path], None]) -> dict[str, Any]:
    """Quantise, export, record; returns report.json. `draw` makes an SVG of its curves, where there are labels;
    `finish` writes the page of a folder that has its report."""
    options = plan.options
    identity = sha256_bytes(b"".join(sha256_file(options.model / n).encode() for n in (CONFIG, WEIGHTS, EXITS)))
    run = "exits" + sha256_bytes(f"{identity} {plan.to_json()}".encode())[:10]
    with OutputLock(options.output), Staging(options.output, run, resumable=False) as staging:
        report = _write(plan, staging, progress)
        if "curves" in report:
            staging.write_bytes(layout.EXIT_FIGURE, draw(report).encode())
        staging.write_json(layout.REPORT, report)
        finish(staging.folder)
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
    tick = progress.step("quantise the stages", 2)
    forms = {}
    for primitive in (False, True):
        forms[primitive] = quantize_exits(plan.model, inputs, plan.scheme, primitive=primitive)
        tick()
    program = forms[plan.target.nonlinear == "primitive"]
    encodings, integers = weights_of(program)
    staging.write_tensors(layout.WEIGHTS, {**_rest(plan.model, encodings), **integers})
    stage_plan = StagePlan(
        spec=plan.model.spec,
        scheme=plan.scheme,
        edges=edges_of(forms[False]),
        inner_edges=edges_of(forms[True]),
        borders=tuple(sorted(program.borders)),
        weights=encodings,
    )
    provenance = {"calibration": plan.inputs.facts}
    document = {"format": PLAN_FORMAT, "kind": EARLY_EXIT, **stage_plan.to_json(), "provenance": provenance}
    staging.write_json(layout.PLAN, document)
    staging.copy(layout.CONFIG, plan.options.model / CONFIG)
    staging.copy(EXITS, plan.options.model / EXITS)
    tick = progress.step("refit the thresholds", 1)
    before, after = _float_logits(plan.model, inputs), _logits(SimulatorStages(program), plan, inputs)
    table = _table(plan, before, after)
    staging.write_tensors(
        layout.CONFIDENCES,
        {"float": torch.from_numpy(table.float_confidence), "integer": torch.from_numpy(table.confidence)},
    )
    tick()
    golden = golden_of(program, inputs[:GOLDEN_SAMPLES])
    staging.write_tensors(layout.GOLDEN, golden)
    written = {}
    for name in plan.target.backends:
        tick = progress.step(f"write {name} for {plan.target.name}", 1)
        written[name] = lower_stages(program, plan.target, name, staging.folder / name, golden, all_exits=True)
        tick()
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
    names = stage_names(len(plan.exits))
    found = [[given[0][0] for given in walk(session, names, sample.numpy())] for sample in inputs]
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
