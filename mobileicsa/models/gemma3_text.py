"""Gemma 3 (text): Gemma 2 with normed q and k instead of soft-caps, and another RoPE in layers with a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.base_spec import layer_windows, optional_window
from mobileicsa.models.config_reader import MAX_LAYERS, ConfigReader
from mobileicsa.models.gemma2 import LAYER_NAMES, gemma_spec
from mobileicsa.models.rope import read_rope
from mobileicsa.models.sources import Source, named_sources

GLOBAL_ROPE, LOCAL_ROPE = 0, 1


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    reader.refuse("attn_logit_softcapping", "this family caps no attention scores")
    spec = gemma_spec(reader, "gemma3_text", layer_type="full_attention", default_theta=1_000_000.0)
    # A transformers 4 config scales the global RoPE only, and keeps the local base in a field of its own.
    local_reader = reader.without("rope_scaling")
    local = read_rope(
        local_reader,
        spec.head_dim,
        spec.max_context,
        layer_type="sliding_attention",
        theta_field="rope_local_base_freq",
    )
    window = optional_window(reader, 4096)
    pattern = reader.integer("sliding_window_pattern", MAX_LAYERS, 6)
    default = [window is not None and (index + 1) % pattern != 0 for index in range(spec.num_layers)]
    windows = layer_windows(reader, spec.num_layers, window, default)
    return replace(
        spec,
        layers=tuple(
            LayerSpec(rope=GLOBAL_ROPE if window is None else LOCAL_ROPE, sliding_window=window) for window in windows
        ),
        ropes=(*spec.ropes, local.spec),
        qk_norm="head",
        logit_softcap=reader.optional_number("final_logit_softcapping", None),
    )


def tensors(spec: ModelSpec) -> dict[str, Source]:
    return named_sources(spec, LAYER_NAMES, gain_offset=1.0)
