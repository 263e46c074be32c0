"""What a node of the program is while it is lowered: stored integers, or a real tensor as integers times a scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.tosa_graph import Tensor

Scale = float | NDArray[np.float64]
Codes = NDArray[np.int64]

INT32_MAX = 2**31 - 1
LIMITS = {"INT8": (-128, 127), "INT16": (-32768, 32767)}


def check_range(where: str, low: int, high: int, dtype: str) -> None:
    """RESCALE saturates, and tables begin, at the ends of the type."""
    if (low, high) != LIMITS.get(dtype):
        raise Unsupported(where, f"its codes go from {low} to {high}, not over all of {dtype}")


@dataclass(frozen=True)
class Integers:
    """An integer (or truth) tensor of the program itself."""

    tensor: Tensor


@dataclass(frozen=True)
class Coded:
    """scale * (tensor - zero); the tensor is INT8 or INT16."""

    tensor: Tensor
    scale: float
    zero: int

    @property
    def bound(self) -> int:
        low, high = self.tensor.limits or LIMITS[self.tensor.dtype]
        return max(high - self.zero, self.zero - low)


@dataclass(frozen=True)
class Sum:
    """scale * tensor, INT32, |tensor| <= bound; `scale` is one number, or one per index of the last axis.

    Raises Unsupported where 32 bits could overflow.
    """

    tensor: Tensor
    scale: Scale
    bound: int

    def __post_init__(self) -> None:
        if self.bound > INT32_MAX:
            raise Unsupported("a sum", f"its integers can reach {self.bound}, 32 bits hold {INT32_MAX}")

    @property
    def per_channel(self) -> bool:
        return isinstance(self.scale, np.ndarray)


@dataclass(frozen=True)
class Constant:
    """A tensor known now; `codes` and `scale` (one, or one per row of axis 0) if it is real, on a grid."""

    value: torch.Tensor | None
    codes: Codes | None = None
    scale: Scale = 1.0
    bits: int = 8

    def grid(self, where: str) -> Codes:
        """Steps from zero; raises Unsupported for a float constant."""
        if self.codes is None:
            raise Unsupported(where, "a constant without an encoding stays real-valued")
        return self.codes


Value = Integers | Coded | Sum | Constant
