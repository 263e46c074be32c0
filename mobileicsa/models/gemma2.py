"""Gemma 2: norms around each branch, soft-caps, GeGLU, scaled embedding, every second layer with a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.base_spec import base_spec, layer_windows, optional_window
from mobileicsa.models.config_reader import ConfigReader
from mobileicsa.models.sources import Source, named_sources

# Modules that Gemma names otherwise than Llama: a norm before and one behind each branch.
LAYER_NAMES = {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def gemma_spec(
    reader: ConfigReader, model_type: str, *, layer_type: str | None = None, default_theta: float = 10_000.0
) -> ModelSpec:
    """What Gemma 2 and 3 share: all but windows, RoPE per layer, soft-caps and q/k norm."""
    reader.refuse("use_bidirectional_attention", "only causal decoders are supported")
    bias = reader.flag("attention_bias", False)
    spec = base_spec(
        reader,
        model_type=model_type,
        tied=True,
        head_dim=256,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        default_theta=default_theta,
        layer_type=layer_type,
    )
    return replace(
        spec,
        qkv_bias=bias,
        o_bias=bias,
        post_norm=True,
        attention_scale=reader.number("query_pre_attn_scalar", 256.0) ** -0.5,
        embed_scale=spec.hidden_size**0.5,
    )


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    spec = gemma_spec(reader, "gemma2")
    window = optional_window(reader, 4096)
    default = [window is not None and index % 2 == 0 for index in range(spec.num_layers)]
    windows = layer_windows(reader, spec.num_layers, window, default)
    return replace(
        spec,
        layers=tuple(LayerSpec(sliding_window=window) for window in windows),
        attention_softcap=reader.optional_number("attn_logit_softcapping", 50.0),
        logit_softcap=reader.optional_number("final_logit_softcapping", 30.0),
    )


def tensors(spec: ModelSpec) -> dict[str, Source]:
    # Gemma stores a gain as its distance from 1.
    return named_sources(spec, LAYER_NAMES, gain_offset=1.0)
