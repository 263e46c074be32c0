"""model_dynamic.onnx, which onnxruntime-genai and optimum load: any number of tokens behind a past of any length.

It reads the weight data of our own files, and has the inputs and outputs of Hugging Face's exports; the past is int8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import write_bytes
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.methods import input_names, output_names
from mobileicsa.program.stock import export_growing, free_slots, prefix_length
from mobileicsa_export.onnx_graph import convert, drop_unused, to_qdq_form
from mobileicsa_export.onnx_lowering import Kernels, lower
from mobileicsa_export.onnx_names import rename
from mobileicsa_export.onnx_sizes import KEYS, POSITION_IDS, POSITIONS, Sizes

DYNAMIC_FILE = "model_dynamic.onnx"
GENAI_CONFIG = "genai_config.json"
# Kernels that every CPU's ONNX Runtime has: which CPU will load the file is not known when it is written.
KERNELS = Kernels(unsigned=True, mixed_sign_exact=False)
# The sums are exact with this entry on x86 without VNNI too, and the file needs no fusion of ONNX Runtime's own.
SESSION_ENTRIES = {"session.x64quantprecision": "1", "session.disable_quant_qdq": "1"}


def write_dynamic(
    decoder: Decoder, target: Target, bits: Mapping[str, int], folder: Path, tokenizer_dir: str
) -> ir.Model:
    """The model, its weights still in memory; writes genai_config.json."""
    spec = decoder.spec
    sizes = Sizes(spec, prefix_length(decoder))
    model = convert(export_growing(decoder, target, sizes.tokens, sizes.past), target.opset)
    to_qdq_form(model, bits)
    ids, _, *past = input_names(spec)
    rename(model, [ids, POSITIONS, KEYS, *past], output_names(spec))
    sizes.free(model.graph)
    lower(model, KERNELS)
    drop_unused(model.graph)
    config = genai_config(spec, free_slots(decoder, target), tokenizer_dir)
    write_bytes(folder / GENAI_CONFIG, json.dumps(config, indent=1, sort_keys=True).encode() + b"\n")
    return model


def genai_config(spec: ModelSpec, slots: int, tokenizer_dir: str) -> dict[str, Any]:
    """What onnxruntime-genai reads beside the model; `slots`: tokens of a conversation behind the prefix."""
    end = list(spec.eos_ids)
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": -1 if spec.bos_id is None else spec.bos_id,
            "eos_token_id": end or [-1],
            "pad_token_id": end[0] if end else 0,
            "context_length": slots,
            "vocab_size": spec.vocab_size,
            "tokenizer_dir": tokenizer_dir,
            "decoder": {
                "filename": DYNAMIC_FILE,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **SESSION_ENTRIES},
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden_size,
                "num_attention_heads": spec.num_heads,
                "num_key_value_heads": spec.num_kv_heads,
                "num_hidden_layers": spec.num_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "position_ids": POSITION_IDS,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": slots, "past_present_share_buffer": False},
    }
