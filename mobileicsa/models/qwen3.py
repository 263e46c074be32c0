"""Qwen 3 (dense): each head of q and k is normalised, no biases unless the config asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.base_spec import base_spec, windows_above
from mobileicsa.models.config_reader import ConfigReader
from mobileicsa.models.sources import Source, named_sources


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    spec = base_spec(reader, model_type="qwen3", head_dim=128)
    layers = tuple(LayerSpec(sliding_window=window) for window in windows_above(reader, spec.num_layers))
    bias = reader.flag("attention_bias", False)
    return replace(spec, layers=layers, qk_norm="head", qkv_bias=bias, o_bias=bias)


def tensors(spec: ModelSpec) -> dict[str, Source]:
    return named_sources(spec)
