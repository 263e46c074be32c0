"""LoRA on a frozen linear: y = W x + factor · B diag(scales) A x, put on, taken off, or folded into W."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileicsa.models import product
from mobileicsa.models.adapter import LowRank


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

    def update(self) -> LowRank:
        """As plain LoRA, scales and factor folded into B."""
        return LowRank(self.a.detach().cpu(), (self.b * (self.scales * self.factor)).detach().cpu())


class Slot(nn.Module):
    """A frozen linear, and the adapter that is on it at the moment, if any."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.adapter: Adapter | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = product.linear(x, self.linear.weight, self.linear.bias)
        return y if self.adapter is None else y + self.adapter(x)


def initial_a(rank: int, inputs: int, draw: torch.Generator) -> Tensor:
    """A (rank, in) as peft starts it: uniform within ± 1 / sqrt(in)."""
    return (torch.rand(rank, inputs, generator=draw) * 2 - 1) / math.sqrt(inputs)


def put_adapters(model: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> None:
    """Freeze every linear whose last name is one of `targets`, and put an untrained adapter on it; torch draws it."""
    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if name in targets and isinstance(linear, nn.Linear):
                slot = Slot(linear.requires_grad_(False))
                a = initial_a(rank, linear.in_features, torch.default_generator)
                slot.adapter = Adapter(a, torch.zeros(linear.out_features, rank), torch.ones(rank), alpha / rank)
                setattr(parent, name, slot)


def fold_adapters(model: nn.Module) -> None:
    """Put ordinary linears back in the place of all slots, their adapters in their weights."""
    for parent in list(model.modules()):
        for name, slot in list(parent.named_children()):
            if isinstance(slot, Slot):
                if slot.adapter is not None:
                    slot.linear.weight.data += slot.adapter.update().product().to(slot.linear.weight)
                setattr(parent, name, slot.linear)
