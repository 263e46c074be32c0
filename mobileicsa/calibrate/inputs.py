"""Means over a linear's inputs, taken on the way while windows go through the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class InputMean:
    """Forward pre-hook: the mean over all rows x (in,) of a linear's inputs of what `summed` sums over rows (n, in)."""

    def __init__(self, summed: Callable[[Tensor], Tensor]) -> None:
        self.summed = summed
        self.total: Tensor | float = 0.0
        self.rows = 0

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        rows = arguments[0].reshape(-1, arguments[0].shape[-1])
        self.total = self.total + self.summed(rows)
        self.rows += rows.shape[0]

    @property
    def mean(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        return self.total / self.rows


def squares(rows: Tensor) -> Tensor:
    """Sum (in,) of x^2: the diagonal of a layer's Hessian."""
    return rows.square().sum(dim=0)


def products(rows: Tensor) -> Tensor:
    """Sum (in, in) float64 of x x^T: a layer's Hessian."""
    return (rows.T @ rows).double()


def values(rows: Tensor) -> Tensor:
    """Sum (in,) float64 of x."""
    return rows.sum(dim=0, dtype=torch.float64)
