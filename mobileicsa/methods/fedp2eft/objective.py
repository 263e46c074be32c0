"""The client's objective: θ ~ Laplace(0, λ) for B, λ ~ Gamma(0.01, rate 100), as negative log densities.

L = CE + w_sig / N · Σ |B| / λ + w_sp / N · Σ (100 λ + log λ), with N training examples: the prior weighs more on
clients with little data. A has no prior; λ of rank r divides column r of B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GAMMA_RATE = 100.0


def significance(columns: Sequence[Tensor], scales: Tensor) -> Tensor:
    """Σ |B| / λ (scalar) over modules: `columns[m]` (out, rank), `scales` (modules, rank) all positive."""
    sums = torch.stack([b.abs().sum(dim=0) for b in columns])
    return (sums / scales).sum()


def sparsity(scales: Tensor) -> Tensor:
    """Σ (100 λ + log λ) (scalar)."""
    return (GAMMA_RATE * scales + scales.log()).sum()


def prior(
    columns: Sequence[Tensor], scales: Tensor, examples: int, *, significance_weight: float, sparsity_weight: float
) -> Tensor:
    """What is added to the cross entropy."""
    weighed = significance_weight * significance(columns, scales) + sparsity_weight * sparsity(scales)
    return weighed / examples
