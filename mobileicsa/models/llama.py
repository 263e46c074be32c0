"""Llama 1 to 3 and what copies it (SmolLM2, TinyLlama): the plain pre-norm decoder."""

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
    bias = reader.flag("attention_bias", False)
    return replace(
        base_spec(reader, model_type="llama"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=reader.flag("mlp_bias", False),
    )


def tensors(spec: ModelSpec) -> dict[str, Source]:
    return named_sources(spec)
