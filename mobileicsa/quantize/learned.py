"""The learning stages of a run, one after another; each starts from the integers that the one before left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mobileicsa.calibrate.device import compute_device
from mobileicsa.calibrate.stream import BATCH, WeightSource
from mobileicsa.quantize.distill import float_targets, used
from mobileicsa.quantize.learn_blocks import learn_blocks
from mobileicsa.quantize.learn_model import learn_model
from mobileicsa.quantize.quality import Judge
from mobileicsa.quantize.recipe import Learning
from mobileicsa.quantize.reobserve import observe_again
from mobileicsa.quantize.steps import Progress, StageStore
from mobileicsa.quantize.student import Base, Student

# Windows that set the 16-bit and inner ranges again afterwards.
SEEN_AGAIN = 32


def learn(
    base: Base,
    weights: WeightSource,
    windows: Tensor,
    offsets: Tensor,
    stages: Sequence[Learning],
    *,
    seed: int,
    store: StageStore,
    run: str,
    judge: Judge,
    progress: Progress,
) -> tuple[Base, dict[str, Any], list[dict[str, Any]]]:
    """The learned model, a report row for each of its edges, and what each stage did; `judge` looks after each.

    windows (N, T) follow the prefix (or hold BOS where there is none), `offsets` (N,) positions further on; the last of
    them are held out.
    """
    spec, told, device = base.plan.spec, [], compute_device()
    for number, learning in enumerate(stages, 1):
        student, stage = Student(base, learning), f"learn-{number}"
        learned, places = used(windows, learning), used(offsets, learning)
        facts: dict[str, Any] = {"scope": learning.scope, "steps": learning.steps, "windows": len(learned)}
        facts["device"] = device.type
        student.to(device)
        if learning.scope == "block":
            tick = progress.step("learn blocks", spec.num_layers)
            facts["blocks"] = learn_blocks(
                student, base, weights, learned, places, learning, seed, store, stage, run, tick
            )
        else:
            tick = progress.step("float model", len(learned))
            targets = float_targets(base, weights, learned, learning.loss, tick, places)
            tick = progress.step("learn end to end", learning.steps)
            history = learn_model(student, learned, targets, learning, seed, store, stage, run, tick)
            facts |= {"loss": learning.loss, **vars(history)}
        judge.look(learning.scope, student)
        base = student.to("cpu").freeze(base)
        told.append(facts)
    # From near to far, and an odd step: windows of two kinds that take turns are both among them.
    picked = torch.argsort(offsets, stable=True)[:: max(1, len(windows) // SEEN_AGAIN) | 1]
    seen, places = windows[picked], offsets[picked]
    tick = progress.step("ranges after learning", spec.num_layers * -(-seen.shape[0] // BATCH))
    edges, rows = observe_again(base.plan, base.tensors, seen, places, tick)
    return replace(base, plan=replace(base.plan, edges=edges)), rows, told
