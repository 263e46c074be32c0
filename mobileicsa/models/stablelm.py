"""StableLM 2: LayerNorm with bias, a quarter of each head rotated, parallel branches and normed heads as options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.base_spec import base_spec, refuse_window
from mobileicsa.models.config_reader import ConfigReader
from mobileicsa.models.sources import Source, named_sources


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    refuse_window(reader)
    spec = base_spec(reader, model_type="stablelm", eps=("layer_norm_eps", 1e-5), default_partial=0.25)
    if spec.head_dim * spec.num_heads != spec.hidden_size:
        raise reader.error("head_dim", f"hidden_size / num_attention_heads = {spec.hidden_size / spec.num_heads:g}")
    return replace(
        spec,
        norm="layer",
        norm_bias=True,
        qkv_bias=reader.flag("use_qkv_bias", False),
        qk_norm="per_head" if reader.flag("qk_layernorm", False) else None,
        parallel_residual=reader.flag("use_parallel_residual", False),
    )


def tensors(spec: ModelSpec) -> dict[str, Source]:
    sources = named_sources(spec)
    if spec.qk_norm:
        for index in range(spec.num_layers):
            for short, heads in (("q", spec.num_heads), ("k", spec.num_kv_heads)):
                norms = f"model.layers.{index}.self_attn.{short}_layernorm.norms"
                sources[f"layers.{index}.attn.{short}_norm.weight"] = Source(
                    names=tuple(f"{norms}.{head}.weight" for head in range(heads)),
                    stacked=True,
                )
    return sources
