"""ReeFL, its baselines and its ablations as one table: exits, loss, who takes part, how updates are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mobileicsa.methods.aggregate import weighted_mean
from mobileicsa.methods.reefl.config import ReeflConfig
from mobileicsa.methods.reefl.losses import (
    Loss,
    all_teach_all,
    best_exit_teaches,
    last_exit,
    last_teaches,
    sum_of_exits,
)
from mobileicsa.methods.updates import Array, Arrays, Update
from mobileicsa.models.early_exit_vit import ExitVitSpec

NAME = "reefl"
# ScaleFL's share of the width at each quarter of the depth.
SCALEFL_WIDTHS = (0.4, 0.55, 0.75, 1.0)
# InclusiveFL: how much of a border block's step comes from the blocks behind it.
MOMENTUM = 0.2


@dataclass(frozen=True, kw_only=True)
class Variant:
    """`everyone`: clients of any budget, else of the deepest only.

    `cost`: expected time of a round on a frozen backbone, ReeFL's is 1.
    `widths`: a client of a smaller budget holds this leading share of every width, and is scored on that.
    """

    loss: Loss
    cost: float
    kind: Literal["recurrent", "own"] = "own"
    modulation: bool = False
    everyone: bool = True
    widths: tuple[float, ...] = (1.0,)
    momentum: bool = False

    def spec(self, whole: ExitVitSpec, exits: int) -> ExitVitSpec:
        """What a client with `exits` exits builds: whole heads, at least one; parameters are corners of the whole's."""
        share = self.widths[(exits * len(self.widths) - 1) // len(whole.exits)]
        heads = max(1, round(share * whole.heads))
        dim = whole.dim * heads // whole.heads
        return replace(whole, kind=self.kind, modulation=self.modulation, heads=heads, dim=dim)


VARIANTS: dict[str, Variant] = {
    NAME: Variant(kind="recurrent", modulation=True, loss=best_exit_teaches, cost=1.0),
    "depthfl": Variant(loss=all_teach_all, cost=0.15),
    "inclusivefl": Variant(loss=last_exit, momentum=True, cost=0.15),
    "scalefl": Variant(loss=last_teaches, widths=SCALEFL_WIDTHS, cost=0.15),
    "exclusivefl": Variant(loss=sum_of_exits, everyone=False, cost=0.15),
    "no-distillation": Variant(kind="recurrent", modulation=True, loss=sum_of_exits, cost=1.0),
    "no-modulation": Variant(kind="recurrent", loss=best_exit_teaches, cost=0.35),
}


def budget(number: int, exits: int) -> int:
    """How many exits client `number` holds: budgets go round, 1 to all."""
    return number % exits + 1


def takes_part(number: int, variant: Variant, config: ReeflConfig) -> bool:
    return variant.everyone or budget(number, config.exits) == config.exits


def join(variant: Variant, spec: ExitVitSpec, state: Arrays, updates: Sequence[Update]) -> dict[str, Array]:
    """Per-key weighted mean; for InclusiveFL with a part of the steps of deeper blocks in each border block's."""
    joined = weighted_mean(state, updates)
    if not variant.momentum:
        return joined
    mixed = dict(joined)
    for border, following in zip(spec.exits[:-1], spec.exits[1:], strict=True):
        for key in (key for key in state if key.startswith(f"blocks.{border - 1}.")):
            behind = [key.replace(f"blocks.{border - 1}.", f"blocks.{block}.") for block in range(border, following)]
            steps = np.mean([joined[other] - state[other] for other in behind], axis=0)
            own = joined[key] - state[key]
            mixed[key] = (state[key] + (1 - MOMENTUM) * own + MOMENTUM * steps).astype(state[key].dtype)
    return mixed
