"""`fit`: one training loop for all methods: batches, clip, schedule, and an early end where training diverges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mobileicsa.core.errors import MobileICSAError

# A loss this many times its first value is never coming back.
HOPELESS = 1e4


class Diverged(MobileICSAError):
    """Training left the finite numbers."""


def batches(count: int, size: int, seed: int, *, epochs: int | None = None) -> Iterator[Tensor]:
    """Indices of shuffled batches, the last one of an epoch smaller; without `epochs` there is no end."""
    draw = torch.Generator().manual_seed(seed)
    for _ in itertools.count() if epochs is None else range(epochs):
        order = torch.randperm(count, generator=draw)
        yield from (order[at : at + size] for at in range(0, count, size))


def cosine(step: int, steps: int, start: float, end: float = 0.0) -> float:
    """From `start` at step 0 to `end` at the last of `steps`, along half a cosine."""
    part = min(step, max(steps - 1, 1)) / max(steps - 1, 1)
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def fit(
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    *,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    rate: Callable[[int], float] | None = None,
    after: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Steps of `optimizer` on `loss_of(batch)`, one a batch; returns the losses.

    `rate(step)` multiplies each group's first lr. Diverged where a loss is not finite, or `HOPELESS` times the first:
    the step is not taken.
    """
    starts = [float(group["lr"]) for group in optimizer.param_groups]
    losses: list[float] = []
    for step, batch in enumerate(batches):
        if rate is not None:
            for group, start in zip(optimizer.param_groups, starts, strict=True):
                group["lr"] = start * rate(step)
        loss = loss_of(batch)
        value = float(loss.detach())
        if not math.isfinite(value) or (losses and abs(value) > HOPELESS * max(abs(losses[0]), 1.0)):
            raise Diverged(f"training diverged at step {step}: loss {value:.4g}", hint="lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, clip_value)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        losses.append(value)
        if after is not None:
            after(step, value)
    return losses


class MovingMean:
    """Exponential moving average, `keep` of the old; None before the first value."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self._keep * self.value + (1 - self._keep) * value
