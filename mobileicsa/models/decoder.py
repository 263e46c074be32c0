"""The canonical decoder: every supported family is this module with another `ModelSpec`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileicsa.core.spec import ModelSpec, RopeSpec
from mobileicsa.models.edge import Edge
from mobileicsa.models.layers import Attention, GatedMLP, Linear, Norm, SoftCap

# Additive mask of a forbidden position; finite, so that 0 * mask never makes NaN.
MASKED = -1.0e9

LayerCache = tuple[Tensor, Tensor]


def rope_table(rope: RopeSpec, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 2n) float32 for positions (T,), the sign of rotate_half folded in sin."""
    frequency = torch.tensor(rope.inv_freq, dtype=torch.float32)
    angle = positions[:, None].to(torch.float32) * frequency[None, :]
    cos, sin = angle.cos() * rope.attention_factor, angle.sin() * rope.attention_factor
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def causal_mask(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Additive mask (..., T, S) of positions (..., T) and (..., S): key <= query, within the sliding window if any."""
    distance = query[..., :, None] - key[..., None, :]
    allowed = distance >= 0
    if window is not None:
        allowed = allowed & (distance < window)
    return torch.where(allowed, 0.0, MASKED)


class DecoderLayer(nn.Module):
    """One block. Holds its own weights only, so that a caller may stream blocks through memory."""

    def __init__(self, spec: ModelSpec, index: int, *, primitive: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.layer = spec.layers[index]
        hidden, bias = spec.hidden_size, spec.norm_bias
        if spec.pre_norm:
            self.attn_norm = Norm(spec, hidden, "norm_out", primitive=primitive, bias=bias)
            if not spec.parallel_residual:
                self.mlp_norm = Norm(spec, hidden, "norm_out", primitive=primitive, bias=bias)
        else:
            self.attn_in, self.mlp_in = Edge("norm_out"), Edge("norm_out")
        self.attn = Attention(spec, self.layer.rope, primitive=primitive)
        self.mlp = GatedMLP(spec, primitive=primitive)
        if spec.post_norm:
            self.attn_post_norm = Norm(spec, hidden, "branch", primitive=primitive, bias=bias)
            self.mlp_post_norm = Norm(spec, hidden, "branch", primitive=primitive, bias=bias)
        if not spec.parallel_residual:
            self.middle = Edge("residual")
        elif spec.parallel_residual:
            self.branches = Edge("residual")
        self.out = Edge("residual")

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor, past: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache]:
        """x (B, T, hidden), mask additive (see Attention) -> output of x's shape and the new stored rows."""
        spec = self.spec
        normed = self.attn_norm(x) if spec.pre_norm else self.attn_in(x)
        attended, k, v = self.attn(normed, rope, mask, past)
        if spec.post_norm:
            attended = self.attn_post_norm(attended)
        if spec.parallel_residual:
            return self.out(x + self.branches(attended + self.mlp(normed))), (k, v)
        h = self.middle(x + attended)
        y = self.mlp(self.mlp_norm(h) if spec.pre_norm else self.mlp_in(h))
        if spec.post_norm:
            y = self.mlp_post_norm(y)
        return self.out(h + y), (k, v)


class Embedding(nn.Module):
    """Token ids (B, T) int64 -> rows (B, T, hidden)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.scale = spec.embed_scale
        self.weight = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size), requires_grad=False)
        # Primitive programs only: a frozen row is its codes times its own scale, both encoded.
        self.codes, self.row_scales = Edge("derived"), Edge("derived")
        self.out = Edge("residual")

    def rows(self, ids: Tensor) -> Tensor:
        """The real-valued rows; a frozen embedding dequantises only the rows it reads."""
        return F.embedding(ids, self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows(ids)
        return self.out(rows if self.scale == 1.0 else rows * self.scale)


class Head(nn.Module):
    """Final norm, a rotated model's square mix, vocabulary projection (tied or its own), logit soft-cap."""

    def __init__(self, spec: ModelSpec, *, primitive: bool = True) -> None:
        super().__init__()
        self.norm = Norm(spec, spec.hidden_size, "head_in", primitive=primitive, bias=spec.norm_bias)
        if spec.head_mix:
            self.mix = Linear(spec.hidden_size, spec.hidden_size, bias=False, role="head_in")
        self.mixes = spec.head_mix
        self.proj = Linear(spec.hidden_size, spec.vocab_size, bias=spec.head_bias, role=None)
        self.softcap = SoftCap(spec.logit_softcap, primitive=primitive) if spec.logit_softcap else None
        self.logits = Edge("logits")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        y = self.proj(self.mix(x) if self.mixes else x)
        logits: Tensor = self.logits(y if self.softcap is None else self.softcap(y))
        return logits


class Decoder(nn.Module):
    """Whole model. `primitive` builds the edges inside norms, softmax, RoPE and SiLU too (see layers.py)."""

    def __init__(self, spec: ModelSpec, *, primitive: bool = True) -> None:
        super().__init__()
        self.spec, self.primitive = spec, primitive
        self.embed = Embedding(spec)
        self.layers = nn.ModuleList(DecoderLayer(spec, index, primitive=primitive) for index in range(spec.num_layers))
        self.head = Head(spec, primitive=primitive)
        self.rope_tables = nn.ModuleList(Edge("derived") for _ in spec.ropes)
        self.mask = Edge("derived")
        # Stored rows that stand before every conversation: only a frozen decoder has them.
        self.prefix_rows: list[LayerCache] = []

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def rope_edges(self) -> list[Edge]:
        """One a `spec.ropes` entry: the encoding of its tables."""
        return [edge for edge in self.rope_tables if isinstance(edge, Edge)]

    def hidden(
        self,
        ids: Tensor,
        ropes: list[tuple[Tensor, Tensor]],
        masks: dict[int | None, Tensor],
        past: list[LayerCache] | None = None,
    ) -> tuple[Tensor, list[LayerCache]]:
        """Token ids (B, T) -> last layer's output and every layer's new cache rows.

        `ropes[i]` are the tables of `spec.ropes[i]` at the tokens' positions, (T, 2n) or (B, 1, T, 2n); `masks[window]`
        (T, S) additive, or once for each query head of a group, or (B, 1, T, S) (see layers.Attention).
        """
        x = self.embed(ids)
        new: list[LayerCache] = []
        for index, layer in enumerate(self.layers):
            spec = self.spec.layers[index]
            rope = None if spec.rope is None else ropes[spec.rope]
            x, cache = layer(x, rope, masks[spec.sliding_window], None if past is None else past[index])
            new.append(cache)
        return x, new

    def forward(self, ids: Tensor, past: list[LayerCache] | None = None) -> tuple[Tensor, list[LayerCache]]:
        """Logits (B, T, vocab) and new cache rows for ids (B, T) that follow `past`, whose rows are all valid."""
        start = 0 if past is None else past[0][0].shape[2]
        tables, masks = positions_for(self.spec, start, ids.shape[1], ids.device)
        ropes = [(edge(cos), edge(sin)) for edge, (cos, sin) in zip(self.rope_edges(), tables, strict=True)]
        x, new = self.hidden(ids, ropes, {window: self.mask(mask) for window, mask in masks.items()}, past)
        return self.head(x), new


def positions_for(
    spec: ModelSpec, start: int, length: int, device: torch.device | None = None
) -> tuple[list[tuple[Tensor, Tensor]], dict[int | None, Tensor]]:
    """RoPE tables and masks of `length` tokens that follow `start` valid ones; made on the CPU on every device."""
    query, key = torch.arange(start, start + length), torch.arange(start + length)
    ropes = [(cos.to(device), sin.to(device)) for cos, sin in (rope_table(rope, query) for rope in spec.ropes)]
    windows = {layer.sliding_window for layer in spec.layers}
    return ropes, {window: causal_mask(query, key, window).to(device) for window in windows}
