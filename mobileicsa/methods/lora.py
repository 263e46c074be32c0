"""LoRA with one scale a rank: y = W x + factor · B diag(scales) A x, put on and taken off a frozen linear."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileicsa.methods.peft_vector import LoraPair


class Adapter(nn.Module):
    """`a` (rank, in) and `b` (out, rank) are trained; `scales` (rank,) is what its owner puts there, learned or not."""

    scales: Tensor

    def __init__(self, a: Tensor, b: Tensor, scales: Tensor, factor: float) -> None:
        super().__init__()
        if a.shape[0] != b.shape[1] or scales.shape != (a.shape[0],):
            raise ValueError(f"lora: a {list(a.shape)}, b {list(b.shape)}, scales {list(scales.shape)}")
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("scales", scales)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a) * (self.scales * self.factor), self.b)

    def pair(self) -> LoraPair:
        """The update as plain LoRA, scales and factor folded into B."""
        return LoraPair(a=self.a.detach().cpu(), b=(self.b * (self.scales * self.factor)).detach().cpu())


class Slot(nn.Module):
    """A frozen linear, and the adapter that is on it at the moment, if any."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.adapter: Adapter | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if self.adapter is None else y + self.adapter(x)


def initial_a(rank: int, inputs: int, draw: torch.Generator) -> Tensor:
    """A (rank, in) as peft starts it: uniform within ± 1 / sqrt(in)."""
    return (torch.rand(rank, inputs, generator=draw) * 2 - 1) / math.sqrt(inputs)
