"""Weight rounding: symmetric per output channel, to nearest, with an optional activation-aware clip.

The clip minimises sum_k h_k (w_k - q_k)^2 per output channel with h_k = E[x_k^2], the diagonal of the layer's
Hessian (as in OBQ/GPTQ's objective). A clip chosen by the unweighted error makes 4-bit models worse (measured).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mobileicsa.core.encoding import MIN_SCALE
from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.quantize.grid_math import shorten

# With a 6-bit activation mantissa the product of both scales still fits float32's 24 bits.
WEIGHT_MANTISSA_BITS = 15
# Rows for which the error is worked out at a time: in float64 a whole embedding table would take too much memory.
ERROR_ROWS = 4096
# Integers (out, in) int8 and scales (out,) of one weight.
Rounded = tuple[Tensor, Tensor]
CLIP_RATIOS = tuple(1.0 - 0.025 * i for i in range(21))


def least_scale(weight: Tensor, encoding: WeightEncoding) -> Tensor:
    """Least scale (out,) at which no value of a row of weight (out, in) saturates, differentiable; 0 for a zero row."""
    low, high = torch.aminmax(weight, dim=1)
    return torch.maximum(high / encoding.qmax, low / encoding.qmin)


def weight_scale(weight: Tensor, encoding: WeightEncoding) -> Tensor:
    """Scale (out,) at which each row of weight (out, in) just fits its codes; 1 for a zero row."""
    least = least_scale(weight, encoding)
    return torch.where(least > 0, short_scale(least.clamp(min=MIN_SCALE)), torch.ones_like(least))


def short_scale(scale: Tensor) -> Tensor:
    """Weight scales (float32, > 0) rounded up to WEIGHT_MANTISSA_BITS."""
    return shorten(scale, WEIGHT_MANTISSA_BITS)


def round_weight(weight: Tensor, scale: Tensor, encoding: WeightEncoding) -> Tensor:
    """Integers (out, in) int8, nearest (ties to even), saturated."""
    return torch.clamp(torch.round(weight / scale[:, None]), encoding.qmin, encoding.qmax).to(torch.int8)


def fake_quantize_weight(weight: Tensor, encoding: WeightEncoding) -> Tensor:
    """Round-to-nearest weight in real values."""
    scale = weight_scale(weight, encoding)
    return round_weight(weight, scale, encoding) * scale[:, None]


def clipped_scale(weight: Tensor, importance: Tensor, encoding: WeightEncoding) -> Tensor:
    """Scale (out,) of the clip ratio with the least importance-weighted error; importance (in,) >= 0."""
    full = weight_scale(weight, encoding)
    best, best_error = full.clone(), torch.full_like(full, float("inf"))
    for ratio in CLIP_RATIOS:
        scale = short_scale(full * ratio)
        error = ((round_weight(weight, scale, encoding) * scale[:, None] - weight).square() * importance).sum(dim=1)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return best


def quantize_weight(name: str, weight: Tensor, encoding: WeightEncoding, importance: Tensor | None) -> Rounded:
    """Integers and scales of one weight; `importance` None means no clip. InputError for NaN or infinity."""
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"{name}: weight is NaN or infinite")
    scale = weight_scale(weight, encoding) if importance is None else clipped_scale(weight, importance, encoding)
    return round_weight(weight, scale, encoding), scale


def real_weight(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """What a model's stored integers `name` (out, in) and their scales `name.scale` (out,) stand for, float32."""
    return tensors[name].to(torch.float32) * tensors[f"{name}.scale"][:, None]


def rounding_facts(weight: Tensor, integers: Tensor, scale: Tensor) -> dict[str, Any]:
    """For the report: squared error over the weight's energy, and the output channels with no integer but 0."""
    error = energy = 0.0
    parts = (torch.split(t, ERROR_ROWS) for t in (weight, integers, scale))
    for w, q, s in zip(*parts, strict=True):
        # float64: the square of a value near float32's end would be infinite.
        w = w.double()
        error += float((q * s[:, None] - w).square().sum())
        energy += float(w.square().sum())
    return {"relative_error": error / max(energy, 1e-30), "zero_rows": int((integers == 0).all(dim=1).sum())}
