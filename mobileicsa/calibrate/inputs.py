"""Means and deviations over a linear's inputs, taken on the way while windows go through the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mobileicsa.core.errors import InputError
from mobileicsa.models.product import linear


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
    return linear(rows.T, rows.T).double()


def values(rows: Tensor) -> Tensor:
    """Sum (in,) float64 of x."""
    return rows.sum(dim=0, dtype=torch.float64)


class InputMoments:
    """Mean and standard deviation of all numbers that a linear reads, over any number of batches.

    Invariant: `spread` is the sum of squared distances from `mean` over `count` numbers. Batches are joined by Chan's
    formula, which does not lose digits where the mean is far larger than the deviation.
    """

    def __init__(self, count: int = 0, mean: float = 0.0, spread: float = 0.0) -> None:
        self.count, self.mean, self.spread = count, mean, spread

    def update(self, x: Tensor) -> None:
        """Take in a tensor of any shape; InputError for NaN or infinity."""
        if not x.numel():
            return
        variance, mean = torch.var_mean(x.detach().double(), correction=0)
        if not torch.isfinite(variance):
            raise InputError("statistics: a linear reads NaN or infinity", hint="are the weights intact?")
        self.merge(InputMoments(x.numel(), float(mean), float(variance) * x.numel()))

    def merge(self, other: InputMoments) -> None:
        """Add what `other` saw."""
        count = self.count + other.count
        if not count:
            return
        distance = other.mean - self.mean
        self.spread += other.spread + distance**2 * self.count * other.count / count
        self.mean += distance * other.count / count
        self.count = count

    def deviation(self, epsilon: float = 0.0) -> float:
        """sqrt(variance + epsilon); 0 where nothing was seen."""
        return float((self.spread / max(self.count, 1) + epsilon) ** 0.5)
