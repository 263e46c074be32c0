"""What gets more bits under a limit: by loss saved for its cost, as far as the limit allows. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mobileicsa.core.errors import UsageError

# Nats a token: a model that loses more says nothing any more, and an estimate may exceed what a float can raise e to.
LARGEST_LOSS = 100.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user allows; at least one of both is given.

    Invariants: `budget_bytes` (packed weights of the whole model) >= 1; `max_ppl_increase` (0.1: a tenth more
    perplexity than the float model's) is finite and > 0. `wide_inputs`: linears' inputs may get 16 bits, for every
    target of the run multiplies them.
    """

    budget_bytes: int | None = None
    max_ppl_increase: float | None = None
    wide_inputs: bool = False

    def __post_init__(self) -> None:
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise UsageError(f"--budget-bytes {self.budget_bytes}: must be at least 1")
        increase = self.max_ppl_increase
        if increase is not None and not (math.isfinite(increase) and increase > 0):
            raise UsageError(f"--max-ppl-increase {increase}: must be a number above 0, e.g. 0.1 for a tenth more")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A weight or edge that may get more bits: `saving` of loss (nats a token) for `cost` > 0, of weights in bytes."""

    name: str
    saving: float
    cost: int


def by_worth(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that save anything, the most for a byte first; equal ones by name."""
    saving = (candidate for candidate in candidates if candidate.saving > 0)
    return sorted(saving, key=lambda c: (-c.saving / c.cost, c.name))


def choose(
    candidates: Iterable[Candidate], *, loss: float, spare_bytes: int | None = None, loss_target: float | None = None
) -> list[Candidate]:
    """Candidates to promote, in order of worth, until `loss` (without any) has fallen to `loss_target`.

    Stops before the first that `spare_bytes` cannot hold, though a smaller one behind it might fit: so a larger budget
    or a lower target only ever adds to what is promoted. None is no limit.
    """
    chosen: list[Candidate] = []
    for candidate in by_worth(candidates):
        if loss_target is not None and loss <= loss_target:
            break
        if spare_bytes is not None:
            spare_bytes -= candidate.cost
            if spare_bytes < 0:
                break
        loss -= candidate.saving
        chosen.append(candidate)
    return chosen


def increase_of(loss: float) -> float:
    """What a loss (KL to the float model, nats a token) adds to perplexity on text of the float model itself, there
    exactly: 0.1 is a tenth more."""
    return math.expm1(min(loss, LARGEST_LOSS))


def loss_of(increase: float) -> float:
    """The inverse of `increase_of` below LARGEST_LOSS."""
    return math.log1p(increase)
