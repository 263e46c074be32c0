"""Builders of small valid model folders, and of the broken and hostile files made from them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.hashing import sha256_file

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}}


def llama_tensors() -> dict[str, Tensor]:
    """The weights of `CONFIG`, random but always the same."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": random(16, 8),
        layer + "input_layernorm.weight": random(8),
        layer + "self_attn.q_proj.weight": random(8, 8),
        layer + "self_attn.k_proj.weight": random(4, 8),
        layer + "self_attn.v_proj.weight": random(4, 8),
        layer + "self_attn.o_proj.weight": random(8, 8),
        layer + "post_attention_layernorm.weight": random(8),
        layer + "mlp.gate_proj.weight": random(12, 8),
        layer + "mlp.up_proj.weight": random(12, 8),
        layer + "mlp.down_proj.weight": random(8, 12),
        "model.norm.weight": random(8),
    }


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return path


def write_model(folder: Path, **changes: Any) -> Path:
    """A complete model folder; `changes` go to its config."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, **changes)
    save_file(llama_tensors(), folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


def write_sharded_model(folder: Path) -> Path:
    """The same in two shards with an index."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    names = sorted(llama_tensors())
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: llama_tensors()[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_index(folder: Path) -> dict[str, str]:
    index: dict[str, dict[str, str]] = json.loads((folder / "model.safetensors.index.json").read_text())
    return index["weight_map"]


def raw_safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A file with exactly this header, however wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


class _Payload:
    """Runs a command in whoever unpickles it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def pickle_bomb(canary: Path) -> bytes:
    return pickle.dumps(_Payload(canary))


def refusal(model: Path) -> str:
    """The message with which the folder is refused."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    assert caught.value.exit_code == 3
    return str(caught.value)


def hub_snapshot(model: Path, tmp_path: Path) -> Path:
    """The folder as the hub cache would hold it: links into blobs."""
    repository = tmp_path / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in model.iterdir():
        blob = blobs / sha256_file(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot
