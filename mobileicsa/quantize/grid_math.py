"""`core.encoding.activation` in tensors: the grid of a range that learns, without a number leaving its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobileicsa.core.encoding import MIN_SCALE, TensorEncoding

# Bits of a float32's mantissa after the leading one.
MANTISSA_BITS = 23


@dataclass(frozen=True)
class Grid:
    """Multiples of `scale` from `bottom` to `top` steps (whole numbers); 0-dim float32 tensors, or numbers."""

    scale: Tensor | float
    bottom: Tensor | float
    top: Tensor | float

    @classmethod
    def of(cls, encoding: TensorEncoding) -> Grid:
        """That of a per-tensor encoding."""
        zero = encoding.zero_point[0]
        return cls(encoding.scale[0], encoding.qmin - zero, encoding.qmax - zero)


def activation_grid(low: Tensor, high: Tensor, bits: int, mantissa_bits: int | None = None) -> Grid:
    """The grid of `activation(low, high, bits, mantissa_bits)`, to the last bit; low, high 0-dim float64.

    An end that is not finite gives a grid of NaN, not an error: a training step is thrown away when its loss is NaN.
    """
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    wide = torch.maximum(low / qmin, high / qmax) if bits == 16 else (high - low) / (qmax - qmin)
    scale = torch.where(high == low, torch.ones_like(wide), wide.clamp(min=MIN_SCALE)).to(torch.float32)
    if mantissa_bits is not None:
        scale = shorten(scale, mantissa_bits)
    zero = torch.zeros_like(scale) if bits == 16 else (qmin - low / scale.to(torch.float64)).round().clamp(qmin, qmax)
    zero = zero.to(torch.float32)
    return Grid(scale, qmin - zero, qmax - zero)


def shorten(scale: Tensor, mantissa_bits: int) -> Tensor:
    """`core.encoding.shorten` of float32 scales > 0 (above float32's subnormals).

    As integers, floats of one sign are in order: rounding the last bits up carries into the exponent where it must.
    """
    unit = 1 << (MANTISSA_BITS - mantissa_bits)
    return ((scale.view(torch.int32) + (unit - 1)) & -unit).view(torch.float32)
