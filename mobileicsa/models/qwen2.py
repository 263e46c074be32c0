"""Qwen 2 and 2.5: biases on q, k, v; the upper layers may have a sliding window."""

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
    spec = base_spec(reader, model_type="qwen2")
    layers = tuple(LayerSpec(sliding_window=window) for window in windows_above(reader, spec.num_layers))
    return replace(spec, layers=layers, qkv_bias=True)


def tensors(spec: ModelSpec) -> dict[str, Source]:
    return named_sources(spec)
