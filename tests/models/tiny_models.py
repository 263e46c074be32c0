"""Tiny random transformers models of every family, one entry for each quirk that could silently go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

VOCAB = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.3 * i for i in range(6)],
    "long_factor": [2.0 + 0.7 * i for i in range(6)],
    "partial_rotary_factor": 0.75,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
GEMMA3 = {"sliding_window": 5, "query_pre_attn_scalar": 24, "rope_parameters": GEMMA3_ROPE}
SLIDE, FULL = "sliding_attention", "full_attention"

CASES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama_plain_untied": (LlamaConfig, {}),
    "llama_biases_head_dim_tied": (
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True},
    ),
    "llama_llama3_rope": (LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama_linear_rope": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ),
    "llama_yarn_rope": (LlamaConfig, {"rope_parameters": YARN}),
    "llama_yarn_rope_all_options": (
        LlamaConfig,
        {
            "rope_parameters": YARN
            | {"beta_fast": 4.0, "beta_slow": 2.0, "truncate": False, "mscale": 0.7, "mscale_all_dim": 1.3}
        },
    ),
    "mistral_window": (MistralConfig, {"sliding_window": 5}),
    "mistral_head_dim_no_window": (MistralConfig, {"sliding_window": None, "head_dim": 24}),
    "qwen2_window_above": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2_tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3_head_dim_tied": (Qwen3Config, {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3_bias_layer_types": (
        Qwen3Config,
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": [SLIDE, FULL, SLIDE],
        },
    ),
    "gemma2_softcaps_window": (
        Gemma2Config,
        {
            "head_dim": 24,
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2_no_softcaps": (
        Gemma2Config,
        {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    ),
    "gemma3_text_two_ropes": (
        Gemma3TextConfig,
        {"head_dim": 24, "num_hidden_layers": 4, "layer_types": [SLIDE, FULL] * 2} | GEMMA3,
    ),
    "gemma3_text_softcap": (Gemma3TextConfig, {"head_dim": 16, "final_logit_softcapping": 3.0} | GEMMA3),
    "phi3_fused": (Phi3Config, {"sliding_window": 5}),
    "phi3_longrope": (
        Phi3Config,
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 32,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3_nope": (SmolLM3Config, {"num_hidden_layers": 4}),
    "smollm3_nope_window_biases": (
        SmolLM3Config,
        {
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": (Olmo2Config, {}),
    "olmo2_bias_tied": (Olmo2Config, {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"}),
    "stablelm": (StableLmConfig, {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm_parallel_qk_norm": (StableLmConfig, {"qk_layernorm": True, "use_parallel_residual": True}),
    "stablelm_qk_norm_one_kv_head": (StableLmConfig, {"qk_layernorm": True, "num_key_value_heads": 1}),
}


def config_of(case: str) -> PreTrainedConfig:
    kind, options = CASES[case]
    return kind(**(SIZES | options), attn_implementation="eager")


def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter random, gains and biases too: a wrong gain must not hide behind ones and zeros."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        center, spread = (0.5, 0.5) if "norm" in name and name.endswith("weight") else (0.0, 0.15)
        parameter.data.copy_(center + spread * noise)
    return model.eval()


def build(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """A random model of that config, also saved to `folder`."""
    table = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if isinstance(config, Gemma3Config) else MODEL_FOR_CAUSAL_LM_MAPPING
    model = randomize(table[type(config)](config))
    model.save_pretrained(folder)
    return model


def token_ids(length: int = 14) -> torch.Tensor:
    """A batch of two, longer than every sliding window used here."""
    return torch.randint(3, VOCAB, (2, length), generator=torch.Generator().manual_seed(3))
