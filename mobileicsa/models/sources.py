"""Where each canonical tensor comes from in a checkpoint, as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.tensor_names import PlainNames

# Canonical module -> module of a checkpoint with Llama's names, inside one layer.
LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.o_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows [start, stop) of a tensor that has `total` rows in all."""

    start: int
    stop: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint tensors that make a canonical one: one name, or several when `stacked` along a new first axis.

    `rows` cuts a fused tensor, `add` is added to every value (a gain stored as its distance from 1).
    """

    names: tuple[str, ...]
    stacked: bool = False
    rows: Rows | None = None
    add: float = 0.0

    def shape_of_each(self, canonical: tuple[int, ...]) -> tuple[int, ...]:
        """The shape every named tensor must have for a canonical tensor of that shape."""
        if self.rows is not None:
            return (self.rows.total, *canonical[1:])
        return canonical[1:] if self.stacked else canonical

    def read(self, source: PlainNames) -> Tensor:
        """The canonical tensor, float32."""
        if self.stacked:
            return torch.stack([source.get(name) for name in self.names])
        tensor = source.get(self.names[0])
        if self.rows is not None:
            # A copy, so that one slice does not keep the whole fused tensor alive.
            tensor = tensor[self.rows.start : self.rows.stop].clone()
        return tensor + self.add if self.add else tensor


def linear_modules(spec: ModelSpec) -> dict[str, bool]:
    """Linear modules of one layer and whether each has a bias."""
    return {
        "attn.q_proj": spec.qkv_bias,
        "attn.k_proj": spec.qkv_bias,
        "attn.v_proj": spec.qkv_bias,
        "attn.o_proj": spec.o_bias,
        "mlp.gate_proj": spec.mlp_bias,
        "mlp.up_proj": spec.mlp_bias,
        "mlp.down_proj": spec.mlp_bias,
    }


def norm_modules(spec: ModelSpec) -> dict[str, bool]:
    """Norm modules of one layer and whether each has a bias."""
    names: dict[str, bool] = {}
    if spec.pre_norm:
        names["attn_norm"] = spec.norm_bias
        if not spec.parallel_residual:
            names["mlp_norm"] = spec.norm_bias
    if spec.post_norm:
        names |= {"attn_post_norm": spec.norm_bias, "mlp_post_norm": spec.norm_bias}
    if spec.qk_norm:
        names |= {"attn.q_norm": False, "attn.k_norm": False}
    return names


def named_sources(
    spec: ModelSpec, layer_names: dict[str, str] | None = None, *, gain_offset: float = 0.0
) -> dict[str, Source]:
    """Sources of every canonical tensor of a checkpoint that names modules like Llama, apart from `layer_names`."""
    names = LLAMA_LAYER | (layer_names or {})
    sources: dict[str, Source] = {}

    def put(canonical: str, module: str, bias: bool, add: float = 0.0) -> None:
        sources[f"{canonical}.weight"] = Source(names=(f"{module}.weight",), add=add)
        if bias:
            sources[f"{canonical}.bias"] = Source(names=(f"{module}.bias",))

    put("embed", EMBEDDING, False)
    for index in range(spec.num_layers):
        for module, bias in linear_modules(spec).items():
            put(f"layers.{index}.{module}", f"model.layers.{index}.{names[module]}", bias)
        for module, bias in norm_modules(spec).items():
            put(f"layers.{index}.{module}", f"model.layers.{index}.{names[module]}", bias, gain_offset)
    put("head.norm", FINAL_NORM, spec.norm_bias, gain_offset)
    if not spec.tied_head:
        put("head.proj", HEAD, spec.head_bias)
    return sources
