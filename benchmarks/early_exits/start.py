"""Where the ViT's training starts from: positions as waves, and attention as trained ViTs have it.

A ViT learns from few images much better where its attention already looks near by and its values start as a small
negation ("Mimetic initialization of self-attention layers", arXiv 2305.09828): W_q' W_k ~ 0.7 Z + 0.7 I in each head
and W_out W_v ~ 0.4 Z - 0.4 I, Z of normal numbers with deviation 1/sqrt(dim).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobileicsa.models.early_exit_vit import Attention, ExitVit

QK_NOISE, QK_IDENTITY = 0.7, 0.7
VO_NOISE, VO_IDENTITY = 0.4, -0.4
LONGEST_WAVE = 10_000.0


def waves(rows: int, columns: int, dim: int) -> Tensor:
    """(rows * columns, dim) sines and cosines of the row, then of the column; dim is a multiple of 4."""
    frequencies = LONGEST_WAVE ** -(torch.arange(dim // 4) / (dim // 4))

    def along(count: int) -> Tensor:
        angles = torch.arange(count)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    down, right = along(rows)[:, None].expand(-1, columns, -1), along(columns)[None].expand(rows, -1, -1)
    return torch.cat([down, right], dim=2).flatten(0, 1)


def factors(noise: float, identity: float, dim: int, rank: int) -> tuple[Tensor, Tensor]:
    """(dim, rank) and (rank, dim) whose product is nearest to noise * Z + identity * I."""
    wanted = noise * torch.randn(dim, dim) / dim**0.5 + identity * torch.eye(dim)
    left, sizes, right = torch.linalg.svd(wanted)
    roots = sizes[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


@torch.no_grad()
def mimic_trained(model: ExitVit) -> None:
    """Set the positions of patches and all blocks' attention weights, by torch's current draws."""
    spec = model.spec
    model.embed.position[0, 1:] = waves(spec.height // spec.patch, spec.width // spec.patch, spec.dim)
    for block in model.blocks:
        attention = block.attn
        assert isinstance(attention, Attention)
        for head in range(spec.heads):
            rows = slice(head * spec.head_dim, (head + 1) * spec.head_dim)
            query, key = factors(QK_NOISE, QK_IDENTITY, spec.dim, spec.head_dim)
            attention.q.weight[rows], attention.k.weight[rows] = query.T, key
        out, value = factors(VO_NOISE, VO_IDENTITY, spec.dim, spec.heads * spec.head_dim)
        attention.out.weight.copy_(out)
        attention.v.weight.copy_(value)
