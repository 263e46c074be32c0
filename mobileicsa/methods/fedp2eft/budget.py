"""Which ranks of which modules a parameter budget keeps: masks (modules, rank) of bool."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_mask(modules: int, rank: int, kept: int) -> Tensor:
    """The first `kept` ranks of every module."""
    return (torch.arange(rank) < kept).expand(modules, rank).clone()


def parameters(mask: Tensor, costs: Tensor) -> int:
    """Number of parameters of a mask; `costs` (modules,) int64: those of one rank, in + out of the linear."""
    return int((mask.sum(dim=1) * costs).sum())


def keep_largest(scores: Tensor, costs: Tensor, budget: int) -> Tensor:
    """The largest scores (modules, rank) over all modules, taken in order while they fit in `budget` parameters.

    One that does not fit is passed over, so that at most the dearest rank's parameters stay unused where enough cheaper
    ranks are left. Among equal scores low ranks come first, over all modules, so that no module is favoured.
    """
    modules = scores.shape[0]
    mask = torch.zeros_like(scores, dtype=torch.bool)
    left = budget
    for index in torch.argsort(scores.T.reshape(-1), descending=True, stable=True).tolist():
        rank, module = divmod(index, modules)
        cost = int(costs[module])
        if cost <= left:
            mask[module, rank] = True
            left -= cost
    return mask
