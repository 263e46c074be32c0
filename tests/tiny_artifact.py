"""A tiny random Llama checkpoint with a byte-level tokenizer, and the artifact quantised from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mobileicsa.artifact.build import build
from mobileicsa.artifact.plan_build import BuildOptions, plan_build
from mobileicsa.program.targets import DEFAULT_TARGET
from mobileicsa.quantize import pipeline

SPECIAL = ("<pad>", "<s>", "</s>")
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256 + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 12


class Silent:
    def step(self, title: str, total: int) -> Callable[[], None]:
        return lambda: None


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    """Random weights, always the same ones; `changes` go into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(11)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}self_attn.k_proj.weight": (kv, hidden),
            f"{layer}self_attn.v_proj.weight": (kv, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}mlp.gate_proj.weight": (inner, hidden),
            f"{layer}mlp.up_proj.weight": (inner, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, inner),
        }
    tensors = {n: (0.3 if len(s) == 2 else 0.1) * torch.randn(s, generator=generator) for n, s in shapes.items()}
    tensors = {n: 1.0 + t if t.dim() == 1 else t for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


@contextmanager
def prefix_fixed(*ids: int) -> Iterator[None]:
    """Searches for a prefix try what they would, and take these: what suits random weights is chance."""
    search = pipeline.search_prefix
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "search_prefix", lambda *given: (ids, search(*given)[1]))
        yield


def make_artifact(
    folder: Path,
    *,
    scheme: str = "w8a8",
    recipe: str = "prefix",
    target: str = DEFAULT_TARGET,
    finish: Callable[[Path], None] = lambda folder: None,
    fields: Sequence[str] = (),
) -> Path:
    """Quantise the tiny checkpoint into `folder`/artifact with a few windows of text; returns that folder.

    `fields`: more overrides of the recipe's.
    """
    checkpoint = write_checkpoint(folder / "checkpoint")
    text = folder / "calibration.txt"
    text.write_text(TEXT)
    overrides = ("calibration.samples=2", "calibration.length=32")
    if recipe in ("prefix", "rotated", "learned"):
        overrides += ("prefix_tokens=1", "alphas=[0.5]")
    if recipe == "learned":
        blocks = "{scope: block, weights: latent, steps: 2, batch: 1, lr_weights: 0.01, lr_scales: 0.001}"
        overrides += ("calibration.learning_samples=4", f"learn=[{blocks}, {{steps: 2, lr_scales: 0.001}}]")
    options = BuildOptions(
        model=str(checkpoint),
        scheme=scheme,
        output=folder / "artifact",
        recipe=recipe,
        targets=(target,),
        calibration=text,
        overrides=(*overrides, *fields),
    )
    with prefix_fixed(1, 86):
        build(plan_build(options), Silent(), finish)
    return folder / "artifact"
