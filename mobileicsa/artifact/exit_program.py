"""Stage programs of an early-exit artifact: made again from its plan, lowered with a back end, compared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import EARLY_EXIT, read_manifest, require_files
from mobileicsa.core.errors import EnvironmentFault, SchemeError, UsageError
from mobileicsa.core.target import Target
from mobileicsa.io.hashing import sha256_file
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.models.exit_files import EXITS
from mobileicsa.program.backend import Array, StagedBackend, StageSession, cannot_run, find_backend
from mobileicsa.program.early_exit import walk
from mobileicsa.program.exit_frozen import StagePlan, frozen_exits
from mobileicsa.program.exit_stages import ExitProgram, SimulatorStages, export_stages, stage_name

INPUT = "input"


@dataclass(frozen=True)
class Frozen:
    """Manifest, plan, float and integer tensors, and golden vectors of an artifact."""

    folder: Path
    manifest: dict[str, Any]
    plan: StagePlan
    tensors: dict[str, Tensor]
    golden: dict[str, Tensor]

    def program(self, *, primitive: bool) -> ExitProgram:
        """SchemeError where the plan has no encodings of that form, as those of older versions."""
        if primitive and not self.plan.inner_edges:
            raise SchemeError(
                f"{self.folder}: its plan has no encodings of inner edges", hint="quantise the model again"
            )
        return frozen_exits(self.plan, self.tensors, primitive=primitive)

    @property
    def names(self) -> list[str]:
        return stage_names(len(self.plan.spec.exits))


def read_frozen_exits(folder: Path) -> Frozen:
    """Raises InputError (not such an artifact), VerificationError (damaged)."""
    manifest = read_manifest(folder, EARLY_EXIT)
    for name in (layout.CONFIG, layout.PLAN, layout.WEIGHTS, layout.GOLDEN, EXITS):
        require_files(folder, manifest, name)
    plan = StagePlan.from_json(read_json(folder / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES))
    return Frozen(folder, manifest, plan, read_tensors(folder / layout.WEIGHTS), read_tensors(folder / layout.GOLDEN))


def stage_names(exits: int) -> list[str]:
    return [stage_name(exit) for exit in range(exits)]


def staged_backend(name: str, target: str) -> StagedBackend:
    """EnvironmentFault where it is not installed, UsageError where it lowers decoders only."""
    back_end = find_backend(name)
    reason = back_end.unavailable()
    if reason is not None:
        raise EnvironmentFault(f"--target {target}: {reason}")
    if not isinstance(back_end, StagedBackend):
        raise UsageError(f"--target {target}: back end {name} lowers no stages of an early-exit model")
    return back_end


def golden_of(program: ExitProgram, inputs: Tensor) -> dict[str, Tensor]:
    """INPUT and, for each stage, `stage_<e>.<k>`: what it gives, of all samples, in its order."""
    rows: dict[str, list[Tensor]] = {INPUT: list(inputs)}
    names, session = stage_names(len(program.stages)), SimulatorStages(program)
    for sample in inputs:
        for name, given in zip(names, walk(session, names, sample.numpy()), strict=True):
            for index, value in enumerate(given):
                rows.setdefault(f"{name}.{index}", []).append(torch.from_numpy(value[0]))
    return {name: torch.stack(values) for name, values in rows.items()}


@dataclass
class Agreement:
    """Numbers that are the golden ones. `steps`: largest difference of integers; `logit`: of logits, real."""

    equal: int = 0
    numbers: int = 0
    labels: int = 0
    exits: int = 0
    steps: int = 0
    logit: float = 0.0

    def add(self, given: list[Array], wanted: list[Array]) -> None:
        for found, expected in zip(given, wanted, strict=True):
            self.equal, self.numbers = self.equal + int((found == expected).sum()), self.numbers + expected.size
        for found, expected in zip(given[1:], wanted[1:], strict=True):
            self.steps = max(self.steps, int(np.abs(found.astype(np.int64) - expected).max()))
        self.logit = max(self.logit, float(np.abs(given[0] - wanted[0]).max()))
        self.labels, self.exits = self.labels + int(given[0].argmax() == wanted[0].argmax()), self.exits + 1

    def to_json(self) -> dict[str, Any]:
        return {
            "equal_share": self.equal / self.numbers,
            "same_labels": self.labels / self.exits,
            "max_steps": self.steps,
            "largest_logit_difference": self.logit,
        }


@dataclass
class Agreements:
    """`chain`: each stage takes what the one before gave; `stages`: each takes what the simulator's gave."""

    chain: Agreement = field(default_factory=Agreement)
    stages: list[Agreement] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**self.chain.to_json(), "stages": [stage.to_json() for stage in self.stages]}


def agree(session: StageSession, golden: dict[str, Tensor]) -> dict[str, Any]:
    """`equal_share` of the numbers that a back end gives exactly as the simulator, `same_labels`: of exits that choose
    the same class, `max_steps` of an integer, `largest_logit_difference`: over whole chains of stages, and in `stages`
    of each alone."""
    names = stage_names(len({name.partition(".")[0] for name in golden}) - 1)
    found = Agreements(stages=[Agreement() for _ in names])
    for sample in range(len(golden[INPUT])):
        wanted = [_golden_row(golden, name, sample) for name in names]
        first = golden[INPUT][sample].numpy()
        for expected, given in zip(wanted, walk(session, names, first), strict=True):
            found.chain.add(given, expected)
        handed = [first[None]]
        for name, expected, stage in zip(names, wanted, found.stages, strict=True):
            stage.add(session.run(name, handed), expected)
            handed = expected[1:]
    return found.to_json()


def _golden_row(golden: dict[str, Tensor], name: str, sample: int) -> list[Array]:
    count = sum(each.startswith(f"{name}.") for each in golden)
    return [golden[f"{name}.{index}"][sample].numpy()[None] for index in range(count)]


def lower_stages(
    program: ExitProgram, target: Target, name: str, folder: Path, golden: dict[str, Tensor], *, all_exits: bool = False
) -> dict[str, Any]:
    """Write a program with one back end into `folder` and compare it with the golden vectors; returns
    {"files": {name: {bytes, sha256}}, "facts", "agreement"}, the last None of a back end that compiles only."""
    back_end = staged_backend(name, target.name)
    wanted = all_exits and back_end.separate_files
    programs = export_stages(program, golden[INPUT][:1], all_exits=wanted)
    written = back_end.write_stages(programs, target, folder)
    agreement = None
    if cannot_run(name) is None:
        session = back_end.open_stages(folder, stage_names(len(program.stages)))
        agreement = agree(session, golden)
        session.close()
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in written.files
    }
    return {"files": files, "facts": json.loads(json.dumps(written.facts)), "agreement": agreement}
