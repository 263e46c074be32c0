"""What each variant minimises on a batch, from the logits of the exits that a client holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from mobileicsa.methods.loop import MovingMean

SCALEFL_WEIGHT, SCALEFL_TEMPERATURE = 0.05, 3.0

# (logits by exit, labels, distillation's weight, moving means of each exit's CE) -> loss
Loss = Callable[[Sequence[Tensor], Tensor, float, Sequence[MovingMean]], Tensor]


def ramp(round: int, rounds: int) -> float:
    """exp(-5 (1 - min(r, R)/R)^2): distillation grows to its full weight over `rounds`."""
    return math.exp(-5.0 * (1.0 - min(round, rounds) / rounds) ** 2)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student), batch mean, the teacher fixed."""
    fixed = softmax(teacher.detach() / temperature, dim=-1)
    found: Tensor = kl_div(log_softmax(student / temperature, dim=-1), fixed, reduction="batchmean")
    return found * temperature**2


def sum_of_exits(exits: Sequence[Tensor], labels: Tensor, weight: float, means: Sequence[MovingMean]) -> Tensor:
    """CE of every exit; each one's value goes into its moving mean."""
    losses = [cross_entropy(logits, labels) for logits in exits]
    for mean, loss in zip(means, losses, strict=True):
        mean.add(float(loss.detach()))
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def best_exit_teaches(exits: Sequence[Tensor], labels: Tensor, weight: float, means: Sequence[MovingMean]) -> Tensor:
    """ReeFL: the exit whose moving mean of training CE is least teaches this client's others."""
    total = sum_of_exits(exits, labels, weight, means)
    best = min(range(len(exits)), key=lambda exit: means[exit].value or 0.0)
    for exit, logits in enumerate(exits):
        if exit != best:
            total = total + weight * divergence(exits[best], logits)
    return total


def all_teach_all(exits: Sequence[Tensor], labels: Tensor, weight: float, means: Sequence[MovingMean]) -> Tensor:
    """DepthFL: every exit teaches every other, over the number of teachers."""
    total = sum_of_exits(exits, labels, weight, means)
    for student, logits in enumerate(exits):
        for teacher, other in enumerate(exits):
            if teacher != student:
                total = total + weight / (len(exits) - 1) * divergence(other, logits)
    return total


def last_exit(exits: Sequence[Tensor], labels: Tensor, weight: float, means: Sequence[MovingMean]) -> Tensor:
    """InclusiveFL: a client trains its deepest exit only."""
    return cross_entropy(exits[-1], labels)


def last_teaches(exits: Sequence[Tensor], labels: Tensor, weight: float, means: Sequence[MovingMean]) -> Tensor:
    """ScaleFL: the deepest exit teaches the others."""
    total = (1 - SCALEFL_WEIGHT) * sum_of_exits(exits, labels, weight, means)
    for logits in exits[:-1]:
        total = total + SCALEFL_WEIGHT * divergence(exits[-1], logits, SCALEFL_TEMPERATURE)
    return total
