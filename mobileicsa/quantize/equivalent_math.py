"""Equivalent scaling: the pure tensor maths of moving range between an activation and the weights that read it.

Legend (SmoothQuant, arXiv 2211.10438; LET of OmniQuant/MobileQuant without shift): x' = x / s, W' = W * s per input
channel, so x' W'^T = x W^T. s_j = max|x_j|**alpha / max|W_:j|**(1 - alpha).
"""

from __future__ import annotations

import torch
from torch import Tensor

# |s| floor of MobileQuant's LET (1e-2), and its inverse so that no channel can explode either.
SCALE_FLOOR, SCALE_CEILING = 1e-2, 1e2


def smoothing_scale(activation_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    """s (channels,) from per-channel magnitudes, normalised to geometric mean 1.

    Dead channels (activation 0) keep s = 1.
    """
    alive = (activation_max > 0) & (weight_max > 0)
    s = activation_max.clamp(min=1e-8) ** alpha / weight_max.clamp(min=1e-8) ** (1.0 - alpha)
    s = torch.where(alive, s, torch.ones_like(s))
    if bool(alive.any()):
        s = torch.where(alive, s / s[alive].log().mean().exp(), s)
    return s.clamp(SCALE_FLOOR, SCALE_CEILING)


def tie_groups(values: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """Per-channel magnitudes over query heads (num_heads * d,) -> largest per key/value channel (num_kv_heads * d,)."""
    grouped = values.view(num_kv_heads, num_heads // num_kv_heads, -1)
    return grouped.amax(dim=1).reshape(-1)


def repeat_groups(values: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """The inverse shape change: one value per key/value channel -> one per query-head channel."""
    grouped = values.view(num_kv_heads, 1, -1).expand(-1, num_heads // num_kv_heads, -1)
    return grouped.reshape(-1)


def relative_error(approximation: Tensor, reference: Tensor) -> float:
    """Squared error over the reference's energy."""
    # float64: the square of a value near float32's end would be infinite.
    energy = float(reference.double().square().sum())
    return float((approximation.double() - reference.double()).square().sum()) / max(energy, 1e-30)
