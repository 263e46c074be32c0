"""OLMo 2: norms behind each branch instead of before it, and over the whole of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.base_spec import base_spec, refuse_window
from mobileicsa.models.config_reader import ConfigReader
from mobileicsa.models.sources import Source, named_sources

LAYER_NAMES = {"attn_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    refuse_window(reader)
    reader.refuse("clip_qkv", "OLMo 2 clips no projections")
    bias = reader.flag("attention_bias", False)
    return replace(
        base_spec(reader, model_type="olmo2", eps=("rms_norm_eps", 1e-5)),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="full",
        pre_norm=False,
        post_norm=True,
    )


def tensors(spec: ModelSpec) -> dict[str, Source]:
    return named_sources(spec, LAYER_NAMES)
