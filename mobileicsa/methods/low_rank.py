"""LoRA on named linears of a small model: a low-rank sum beside the frozen weight, folded in at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """`base(x) + (alpha / rank) * B A x`; A (rank, in) random, B (out, rank) zero, so that it starts as `base`."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.base(rows) + (rows @ self.lora_a.T @ self.lora_b.T) * self.scale
        return result

    def merged(self) -> nn.Linear:
        """The base linear with the sum folded into its weight."""
        with torch.no_grad():
            self.base.weight += self.scale * self.lora_b @ self.lora_a
        return self.base


def add_low_rank(model: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> None:
    """Wrap every linear whose last name is one of `targets`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank, alpha))


def fold_low_rank(model: nn.Module) -> None:
    """Put ordinary linears back in the place of all `LowRank`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRank):
                setattr(parent, name, child.merged())
