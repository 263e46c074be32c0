"""Small checkpoints without transformers: a config and tensors in memory, with the errors of a broken folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.checkpoint import Checkpoint

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class DictSource:
    """A `TensorSource` over a dict that remembers which tensors were read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.read: list[str] = []

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def get(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise InputError(f"tensor {name!r} is missing")
        self.read.append(name)
        return self.tensors[name].clone()

    def identity(self) -> str:
        return "0" * 64

    def check_unchanged(self) -> None:
        """Memory does not change."""


def llama_tensors(config: dict[str, Any] = CONFIG) -> dict[str, Tensor]:
    """Random tensors of the shapes that a llama config asks for, head included."""
    generator = torch.Generator().manual_seed(11)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,), "lm_head": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes |= {
            f"{layer}.input_layernorm": (hidden,),
            f"{layer}.post_attention_layernorm": (hidden,),
            f"{layer}.self_attn.q_proj": (hidden, hidden),
            f"{layer}.self_attn.k_proj": (kv, hidden),
            f"{layer}.self_attn.v_proj": (kv, hidden),
            f"{layer}.self_attn.o_proj": (hidden, hidden),
            f"{layer}.mlp.gate_proj": (inner, hidden),
            f"{layer}.mlp.up_proj": (inner, hidden),
            f"{layer}.mlp.down_proj": (hidden, inner),
        }
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def checkpoint(
    config: dict[str, Any] = CONFIG,
    tensors: dict[str, Tensor] | None = None,
    generation: dict[str, Any] | None = None,
) -> Checkpoint:
    return Checkpoint(
        source_name="tiny",
        folder=Path("tiny"),
        config=config,
        ignored=(),
        tensors=DictSource(llama_tensors() if tensors is None else tensors),
        generation=generation or {},
        identity="0" * 64,
        tokenizer_writer=lambda folder: None,
    )
