"""Which keys of a config.json are read: an allow-list, because a key may ask other software to run code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobileicsa.core.errors import InputError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ROPE_KEYS = _words(
    "rope_type type factor rope_theta partial_rotary_factor original_max_position_embeddings low_freq_factor "
    "high_freq_factor attention_factor beta_fast beta_slow short_factor long_factor mscale mscale_all_dim "
    "short_mscale long_mscale truncate"
)
# Gemma 3 has one set of rope parameters for each kind of layer.
ROPE_LAYER_KEYS = frozenset(("full_attention", "sliding_attention"))

MODEL_KEYS = _words(
    "model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act hidden_activation max_position_embeddings "
    "original_max_position_embeddings rms_norm_eps layer_norm_eps norm_eps tie_word_embeddings attention_bias "
    "mlp_bias bias use_bias use_qkv_bias qkv_bias qk_layernorm use_parallel_residual rope_theta "
    "rope_local_base_freq partial_rotary_factor sliding_window use_sliding_window max_window_layers layer_types "
    "sliding_window_pattern _sliding_window_pattern query_pre_attn_scalar attn_logit_softcapping "
    "final_logit_softcapping no_rope_layers no_rope_layer_interval use_bidirectional_attention clip_qkv "
    "embedding_multiplier residual_multiplier attention_multiplier logits_scaling num_experts num_local_experts "
    "rope_interleaved is_encoder_decoder bos_token_id eos_token_id pad_token_id"
)
# They describe training, bookkeeping or the file itself, and change nothing in what the model computes.
HARMLESS_KEYS = _words(
    "transformers_version torch_dtype dtype use_cache initializer_range attention_dropout hidden_dropout "
    "resid_pdrop embd_pdrop pretraining_tp is_llama_config transformers.js_config chunk_size_feed_forward "
    "id2label label2id output_attentions output_hidden_states return_dict unk_token_id _name_or_path "
    "_model_name_or_path cache_implementation problem_type"
)
NESTED = {"rope_scaling": ROPE_KEYS, "rope_parameters": ROPE_KEYS | ROPE_LAYER_KEYS, "text_config": MODEL_KEYS}


def filter_config(raw: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The allowed part of a parsed config.json, and the dotted names of the keys that were left out."""
    ignored: list[str] = []
    kept = _filter(raw, MODEL_KEYS, f"{where}: ", "", ignored)
    return kept, tuple(sorted(ignored))


def _filter(
    raw: Mapping[str, Any], allowed: frozenset[str], where: str, prefix: str, ignored: list[str]
) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in raw.items():
        nested = _nested_keys(key, allowed)
        if nested is not None and isinstance(value, dict):
            kept[key] = _filter(value, nested, where, f"{prefix}{key}.", ignored)
        elif key in allowed or nested is not None:
            if not _plain(value) or (nested is not None and value is not None):
                raise InputError(f"{where}{prefix}{key} has a value of an unexpected kind: {str(value)[:80]}")
            kept[key] = value
        elif key not in HARMLESS_KEYS:
            ignored.append(prefix + key)
    return kept


def _nested_keys(key: str, allowed: frozenset[str]) -> frozenset[str] | None:
    if allowed is MODEL_KEYS and key in NESTED:
        return NESTED[key]
    return ROPE_KEYS if key in ROPE_LAYER_KEYS and key in allowed else None


def _plain(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return not any(isinstance(item, dict | list) for item in items)
