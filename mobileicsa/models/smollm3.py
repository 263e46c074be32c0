"""SmolLM3: Llama whose every fourth layer has no position embedding (NoPE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.base_spec import base_spec, layer_windows, optional_window
from mobileicsa.models.config_reader import MAX_LAYERS, ConfigReader
from mobileicsa.models.sources import Source, named_sources


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    spec = base_spec(reader, model_type="smollm3", tied=True, default_theta=2_000_000.0)
    rotates = _rotating_layers(reader, spec.num_layers)
    window = optional_window(reader) if reader.flag("use_sliding_window", False) else None
    windows = layer_windows(
        reader, spec.num_layers, window, [window is not None and not rotating for rotating in rotates]
    )
    bias = reader.flag("attention_bias", False)
    return replace(
        spec,
        layers=tuple(
            LayerSpec(rope=0 if rotating else None, sliding_window=window)
            for rotating, window in zip(rotates, windows, strict=True)
        ),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=reader.flag("mlp_bias", False),
    )


def _rotating_layers(reader: ConfigReader, count: int) -> list[bool]:
    """Despite its name, `no_rope_layers` holds 1 where a layer has RoPE."""
    listed = reader.items("no_rope_layers", int, count)
    if listed is not None:
        return [bool(flag) for flag in listed]
    interval = reader.integer("no_rope_layer_interval", MAX_LAYERS, 4)
    return [(index + 1) % interval != 0 for index in range(count)]


def tensors(spec: ModelSpec) -> dict[str, Source]:
    return named_sources(spec)
