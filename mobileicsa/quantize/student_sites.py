"""Where a student learns equivalent scalings: MobileQuant's LET sites, with those that grouped heads and RoPE allow.

norm -> q/k/v, norm -> gate/up, up -> down, v -> o (tied over the query heads of a group), q x k (RoPE's pairs tied).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import DecoderLayer
from mobileicsa.quantize.student_layers import ChannelScale, GainEdge, StudentLinear

ATTENTION_READERS = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
MLP_READERS = ("mlp.gate_proj", "mlp.up_proj")


def attach_scalings(layer: DecoderLayer) -> dict[str, nn.Parameter]:
    """Give the layer's modules their equivalent scalings, all ones; the logarithms that learn, by site."""
    spec = layer.spec
    found: dict[str, nn.Parameter] = {}
    if spec.pre_norm and spec.parallel_residual:
        found["norm"] = _norm_site(layer, "attn_norm", ATTENTION_READERS + MLP_READERS)
    elif spec.pre_norm:
        found["attention"] = _norm_site(layer, "attn_norm", ATTENTION_READERS)
        found["mlp"] = _norm_site(layer, "mlp_norm", MLP_READERS)
    inner, kv_size = spec.intermediate_size, spec.num_kv_heads * spec.head_dim
    every, per_query = torch.arange(kv_size), _per_query_head(spec)
    product, value = _ones(inner), _ones(kv_size)
    _linear(layer, "mlp.up_proj").rows = ChannelScale(product, torch.arange(inner))
    _linear(layer, "mlp.down_proj").columns = ChannelScale(product, torch.arange(inner))
    _linear(layer, "attn.v_proj").rows = ChannelScale(value, every)
    _linear(layer, "attn.o_proj").columns = ChannelScale(value, per_query)
    found |= {"product": product, "value": value}
    if spec.qk_norm is None:  # else the norms' gains do the same
        pairs = (torch.arange(spec.num_kv_heads)[:, None] * spec.head_dim + _rope_pairs(spec, layer)).reshape(-1)
        found["query_key"] = query_key = _ones(kv_size)
        _linear(layer, "attn.k_proj").rows = ChannelScale(query_key, pairs)
        _linear(layer, "attn.q_proj").rows = ChannelScale(query_key, pairs[per_query], sign=-1.0)
    return found


def _ones(size: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size))


def _linear(layer: DecoderLayer, path: str) -> StudentLinear:
    linear = layer.get_submodule(path)
    assert isinstance(linear, StudentLinear)
    return linear


def _norm_site(layer: DecoderLayer, norm: str, readers: tuple[str, ...]) -> nn.Parameter:
    log, every = _ones(layer.spec.hidden_size), torch.arange(layer.spec.hidden_size)
    for edge in layer.get_submodule(norm).children():
        if isinstance(edge, GainEdge):
            edge.scaling = ChannelScale(log, every)
    for reader in readers:
        _linear(layer, reader).columns = ChannelScale(log, every)
    return log


def _per_query_head(spec: ModelSpec) -> Tensor:
    """For each query-head channel, the key/value channel that it meets."""
    channels = torch.arange(spec.num_kv_heads * spec.head_dim).view(spec.num_kv_heads, 1, spec.head_dim)
    return channels.expand(-1, spec.num_heads // spec.num_kv_heads, -1).reshape(-1)


def _rope_pairs(spec: ModelSpec, layer: DecoderLayer) -> Tensor:
    """For each dimension of a head the one whose scale it takes: both of a rotated pair share one."""
    dimension = torch.arange(spec.head_dim)
    if layer.layer.rope is None:
        return dimension
    half = len(spec.ropes[layer.layer.rope].inv_freq)
    return torch.where((dimension >= half) & (dimension < 2 * half), dimension - half, dimension)
