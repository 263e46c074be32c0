"""What a GGUF file calls things, in Hugging Face terms: the config and the tensor names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mobileicsa.core.errors import InputError
from mobileicsa.io.gguf_header import GgufHeader

# Families whose GGUF form holds the same numbers under other names (llama: q and k rows in another order).
ARCHITECTURES = ("llama", "qwen2", "qwen3")

_NUMBERS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


def config_of(header: GgufHeader, path: Path) -> dict[str, Any]:
    """The Hugging Face config that the file describes."""
    fields = header.fields
    family = fields.get("general.architecture")
    if family not in ARCHITECTURES:
        raise InputError(
            f"{path}: GGUF architecture {family!r} is not one of {', '.join(ARCHITECTURES)}",
            hint="use the safetensors version of the model",
        )
    _refuse_unread(header, family, path)
    config: dict[str, Any] = {"model_type": family, "hidden_act": "silu"}
    for key, name in _NUMBERS.items():
        if (value := fields.get(f"{family}.{key}")) is not None:
            config[name] = _above_zero(value, f"{path}: {family}.{key}")
    missing = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"} - set(config)
    if missing or "token_embd.weight" not in header.tensors:
        raise InputError(f"{path}: {', '.join(sorted(missing)) or 'token_embd.weight'} is missing")
    # llama.cpp's default for a file that names no base
    config.setdefault("rope_theta", 10000.0)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    if "head_dim" not in config and (key := f"{family}.rope.dimension_count") in fields:
        config["head_dim"] = _above_zero(fields[key], f"{path}: {key}")
    config["vocab_size"] = header.tensors["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    if family == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    for key, name in _TOKENS.items():
        if key in fields:
            config[name] = fields[key]
    return config


def hugging_face_name(name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor; None if none of our families has it."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["block"] is None:
        part = _TOP.get(match["part"])
        return part and f"{part}.{match['kind']}"
    part = _BLOCK.get(match["part"])
    return part and f"model.layers.{int(match['block'])}.{part}.{match['kind']}"


def generation_of(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}


def _above_zero(value: Any, where: str) -> int | float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise InputError(f"{where} is {str(value)[:80]}, not a number above 0")
    return cast(int | float, value)


def _refuse_unread(header: GgufHeader, family: str, path: Path) -> None:
    """Things that change what the model computes and that we would otherwise leave out silently."""
    hint = "use the safetensors version of the model"
    if header.fields.get(f"{family}.expert_count"):
        raise InputError(f"{path}: {family}.expert_count: mixtures of experts are not supported")
    scaling = header.fields.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensors:
        raise InputError(f"{path}: RoPE scaling in GGUF ({scaling}, rope_freqs) is not read", hint=hint)
    if f"{family}.attention.sliding_window" in header.fields:
        raise InputError(f"{path}: {family}.attention.sliding_window is not read from GGUF", hint=hint)
