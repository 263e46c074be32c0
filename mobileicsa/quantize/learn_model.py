"""Learning end to end: the whole student follows the float model's output (MobileQuant, arXiv 2408.13933)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mobileicsa.quantize.distill import Descent, Targets, batches, held_out, loss_of, parameter_groups, stacked
from mobileicsa.quantize.recipe import Learning
from mobileicsa.quantize.steps import StageStore
from mobileicsa.quantize.student import Student

# Steps between two looks at the held-out windows; after each a run can go on from there.
INTERVAL = 64
# A held-out loss this many times the first one will not come back.
DIVERGED = 2.0
# What AdamW keeps of each parameter.
MOMENTS = ("step", "exp_avg", "exp_avg_sq")

log = logging.getLogger(__name__)


@dataclass
class History:
    """Held-out loss by step (step 0: before learning) and mean training loss since the look before."""

    steps_seen: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    best_step: int = 0
    stopped: str | None = None

    def look(self, step: int, held_out: float, training: list[float]) -> bool:
        """Add a look at a step, with the training losses since the one before; whether it is the best yet.

        A loss that is not finite or too far above the first one stops learning.
        """
        self.steps_seen.append(step)
        self.held_out.append(held_out)
        self.training.append(sum(training) / max(1, len(training)))
        if not math.isfinite(held_out) or held_out > DIVERGED * self.held_out[0]:
            self.stopped = f"held-out loss {held_out:.4g} at step {step}, {self.held_out[0]:.4g} before learning"
            return False
        if held_out > min(self.held_out):
            return False
        self.best_step = step
        return True


def learn_model(
    student: Student,
    windows: Tensor,
    targets: list[Targets],
    learning: Learning,
    seed: int,
    store: StageStore,
    stage: str,
    run: str,
    tick: Callable[[], None],
) -> History:
    """Learn in place; the best parameters are kept, those of step 0 among them. `tick` is called once a step."""
    trainer = _Trainer(student, windows, targets, learning, seed)
    if store.done(stage, f"{run}:{stage}"):
        trainer.load(*store.load(stage))
    else:
        trainer.look()
    for _ in range(trainer.step):
        tick()
    while trainer.step < learning.steps and trainer.history.stopped is None:
        trainer.advance()
        tick()
        if trainer.step % INTERVAL == 0 or trainer.step == learning.steps:
            trainer.look()
            if trainer.history.stopped is None:
                store.save(stage, f"{run}:{stage}", *trainer.state())
    if trainer.history.stopped:
        log.warning("learning stopped (%s); kept step %d", trainer.history.stopped, trainer.history.best_step)
    trainer.descent.restore(trainer.best)
    return trainer.history


class _Trainer:
    """Student, optimiser and the place in the run."""

    def __init__(
        self, student: Student, windows: Tensor, targets: list[Targets], learning: Learning, seed: int
    ) -> None:
        self.student, self.windows, self.targets = student, windows, targets
        self.training = windows.shape[0] - held_out(windows.shape[0])
        scalings = [log for sites in student.scalings for log in sites.values()]
        groups = parameter_groups(student.decoder.modules(), student.prefix, scalings, learning)
        loss = partial(loss_of, student, save_memory=learning.save_memory)
        # Blocks that are computed again restore the random state, which a recorded step cannot.
        self.descent = Descent(groups, learning.steps, loss, replays=not learning.save_memory)
        self.order = batches(self.training, min(learning.batch, self.training), seed)
        self.step, self.history, self.losses = 0, History(), list[float]()
        self.best = self.descent.values()

    def advance(self) -> None:
        picked = next(self.order)
        targets = [self.targets[i] for i in picked.tolist()]
        loss = self.descent.advance(self.step, self.windows[picked], *stacked(targets))
        self.step += 1
        if math.isnan(loss):
            self.history.stopped = f"loss or gradient not finite at step {self.step}"
        self.losses.append(loss)

    @torch.no_grad()
    def look(self) -> None:
        """Held-out loss now; keeps the parameters where it is the lowest yet."""
        held = range(self.training, self.windows.shape[0])
        losses = [float(loss_of(self.student, self.windows[i : i + 1], *stacked([self.targets[i]]))) for i in held]
        if self.history.look(self.step, sum(losses) / len(losses), self.losses):
            self.best = self.descent.values()
        self.losses = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.descent.parameters):
            moments = self.descent.optimizer.state[parameter]
            tensors |= {f"{index}.value": parameter.detach(), f"{index}.best": self.best[index]}
            tensors |= {f"{index}.{name}": value for name, value in moments.items()}
        tensors = {name: value.cpu() for name, value in tensors.items()}
        return tensors, {"step": self.step, "history": vars(self.history)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        for index, parameter in enumerate(self.descent.parameters):
            parameter.copy_(tensors[f"{index}.value"])
            here = {name: tensors[f"{index}.{name}"].to(parameter.device) for name in ("best", *MOMENTS)}
            self.best[index] = here.pop("best")
            self.descent.optimizer.state[parameter] = here
        self.step, self.history = int(data["step"]), History(**data["history"])
        for _ in range(self.step):
            next(self.order)
