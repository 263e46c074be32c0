"""Phi-3, Phi-3.5 and Phi-4-mini: Llama with fused q/k/v and gate/up, LongRoPE, part of a head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.base_spec import base_spec, layer_windows, optional_window
from mobileicsa.models.config_reader import ConfigReader
from mobileicsa.models.sources import Rows, Source, named_sources

# Names that early files gave to LongRoPE.
ROPE_NAMES = {"su": "longrope", "yarn": "longrope"}


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    reader = ConfigReader(config, where)
    spec = base_spec(
        reader,
        model_type="phi3",
        eps=("rms_norm_eps", 1e-5),
        default_partial=1.0,
        trained_context=4096,
        rope_renamed=ROPE_NAMES,
    )
    window = optional_window(reader)
    windows = layer_windows(reader, spec.num_layers, window, [window is not None] * spec.num_layers)
    return replace(spec, layers=tuple(LayerSpec(sliding_window=window) for window in windows))


def tensors(spec: ModelSpec) -> dict[str, Source]:
    sources = named_sources(spec)
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    fused = {
        "self_attn.qkv_proj": {"attn.q_proj": query, "attn.k_proj": key, "attn.v_proj": key},
        "mlp.gate_up_proj": {"mlp.gate_proj": spec.intermediate_size, "mlp.up_proj": spec.intermediate_size},
    }
    for index in range(spec.num_layers):
        for module, parts in fused.items():
            start, total = 0, sum(parts.values())
            for canonical, rows in parts.items():
                sources[f"layers.{index}.{canonical}.weight"] = Source(
                    names=(f"model.layers.{index}.{module}.weight",),
                    rows=Rows(start=start, stop=start + rows, total=total),
                )
                start += rows
    return sources
