"""One tiny config of every supported family, as its config.json says it, and the spec that it means."""

from __future__ import annotations

from typing import Any

from tiny_frozen import VOCAB

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.families import spec_from_config

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
}
SLIDE, FULL = "sliding_attention", "full_attention"

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "tie_word_embeddings": False},
    "mistral": {"hidden_act": "silu", "sliding_window": 5},
    "qwen2": {"hidden_act": "silu", "tie_word_embeddings": True},
    "qwen3": {"hidden_act": "silu", "tie_word_embeddings": True},
    "gemma2": {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "layer_types": [SLIDE, FULL],
    },
    "phi3": {"hidden_act": "silu", "sliding_window": 5, "tie_word_embeddings": False},
    "smollm3": {"hidden_act": "silu", "no_rope_layers": [1, 0]},
    "olmo2": {"hidden_act": "silu", "tie_word_embeddings": False},
    "stablelm": {
        "hidden_act": "silu",
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.5,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}


def family_spec(name: str, **changes: Any) -> ModelSpec:
    return spec_from_config({"model_type": name, **SIZES, **FAMILIES[name], **changes}, name)
