"""Configs as transformers 4 wrote them, and configs that leave defaults out, mean what transformers 5 makes of them."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import pytest
from tiny_models import LONGROPE, SIZES
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from mobileicsa.core.errors import InputError
from mobileicsa.models.families import spec_from_config

SHORT = LONGROPE["short_factor"]
PHI3_OLD: dict[str, Any] = {
    "partial_rotary_factor": 0.75,
    "rope_theta": 500.0,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": SHORT},
    "original_max_position_embeddings": 32,
}
OLD_FORMS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama_theta": (LlamaConfig, {"rope_theta": 500_000.0, "rope_scaling": None}),
    "llama_silent": (LlamaConfig, {}),
    "llama_linear_by_type": (LlamaConfig, {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 700.0}),
    "llama_llama3": (
        LlamaConfig,
        {
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 24,
            },
        },
    ),
    "qwen2_yarn": (
        Qwen2Config,
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, "rope_theta": 1e6},
    ),
    "qwen2_window_not_in_use": (Qwen2Config, {"use_sliding_window": False, "sliding_window": 5}),
    "qwen2_window_above": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3_silent": (Qwen3Config, {}),
    "mistral_silent": (MistralConfig, {}),
    "gemma2_silent": (Gemma2Config, {}),
    "gemma3_silent": (Gemma3TextConfig, {"num_hidden_layers": 7}),
    "gemma3_old_rope": (
        Gemma3TextConfig,
        {
            "num_hidden_layers": 7,
            "rope_theta": 900_000.0,
            "rope_local_base_freq": 700.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
            "sliding_window": 5,
        },
    ),
    "phi3_longrope": (Phi3Config, PHI3_OLD),
    "smollm3_silent": (SmolLM3Config, {"num_hidden_layers": 9}),
    "smollm3_interval": (SmolLM3Config, {"num_hidden_layers": 5, "no_rope_layer_interval": 2, "rope_theta": 300.0}),
    "olmo2_silent": (Olmo2Config, {}),
    "stablelm_silent": (StableLmConfig, {}),
    "stablelm_old": (StableLmConfig, {"partial_rotary_factor": 0.5, "rope_theta": 300.0}),
}


@pytest.mark.parametrize("case", OLD_FORMS)
def test_old_form_means_what_transformers_reads(case: str) -> None:
    kind, options = OLD_FORMS[case]
    written = copy.deepcopy(SIZES | options)
    understood = json.loads(kind(**copy.deepcopy(written)).to_json_string(use_diff=False))
    assert spec_from_config({"model_type": kind.model_type, **written}, "old") == spec_from_config(understood, "new")


def test_longrope_is_cut_to_the_context_where_it_is_exact(caplog: pytest.LogCaptureFixture) -> None:
    config = {"model_type": "phi3", **SIZES, "max_position_embeddings": 131_072, "rope_parameters": LONGROPE}
    with caplog.at_level(logging.WARNING):
        spec = spec_from_config(config | {"original_max_position_embeddings": 4096}, "config.json")
    assert spec.max_context == 4096
    assert "context of 131072 is cut" in caplog.text


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_early_phi3_names_of_longrope_are_known(name: str) -> None:
    # transformers 5 no longer reads this form itself, so it cannot be the reference here.
    new = {"model_type": "phi3", **SIZES, **PHI3_OLD}
    old = new | {"rope_scaling": PHI3_OLD["rope_scaling"] | {"type": name}}
    assert spec_from_config(old, "old") == spec_from_config(new, "new")


@pytest.mark.parametrize("part", ["rope_type", "type"])
def test_dynamic_rope_is_refused_by_field(part: str) -> None:
    config = {"model_type": "llama", **SIZES, "rope_scaling": {part: "dynamic", "factor": 2.0}}
    with pytest.raises(InputError, match=rf"config.json: rope_scaling\.{part} is 'dynamic'"):
        spec_from_config(config, "config.json")


def test_gemma3_wrapper_is_read_through_its_text_config() -> None:
    text = {"model_type": "gemma3_text", **SIZES, "tie_word_embeddings": True}
    wrapper = {"model_type": "gemma3", "text_config": text, "tie_word_embeddings": False}
    spec = spec_from_config(wrapper, "config.json")
    assert spec.model_type == "gemma3_text"
    assert not spec.tied_head
