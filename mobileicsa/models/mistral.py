"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.base_spec import base_spec, layer_windows, optional_window
from mobileicsa.models.config_reader import ConfigReader
from mobileicsa.models.sources import Source, named_sources


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    spec = base_spec(reader, model_type="mistral")
    window = optional_window(reader, 4096)
    windows = layer_windows(reader, spec.num_layers, window, [window is not None] * spec.num_layers)
    if len(set(windows)) > 1:
        raise reader.error("layer_types", "the same for all layers: this family has one window")
    return replace(spec, layers=tuple(LayerSpec(sliding_window=window) for window in windows))


def tensors(spec: ModelSpec) -> dict[str, Source]:
    return named_sources(spec)
