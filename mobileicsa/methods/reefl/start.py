"""`read_vit`: a backbone from a folder of transformers' ViT (DeiT-S and its kin)."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.paths import inside
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec

WEIGHTS = "model.safetensors"
HINT = "start=DIR must hold a ViT of transformers"
OUTER = {
    "embed.cls": "embeddings.cls_token",
    "embed.position": "embeddings.position_embeddings",
    "embed.patch": "embeddings.patch_embeddings.projection",
}
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def read_vit(folder: Path, spec: ExitVitSpec) -> dict[str, Tensor]:
    """Backbone parameters by our names; InputError where one is missing or of another shape than `spec`'s."""
    from safetensors.torch import load_file

    path = inside(folder, WEIGHTS)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint=HINT) from error
    plain = {name.removeprefix("vit."): tensor.float() for name, tensor in tensors.items()}
    found = {}
    for name, parameter in ExitVit(spec).state_dict().items():
        if name.startswith("exits."):
            continue
        theirs = _their_name(name)
        if theirs not in plain:
            raise InputError(f"{path}: no tensor {theirs}", hint=HINT)
        if plain[theirs].shape != parameter.shape:
            raise InputError(f"{path}: {theirs} is {tuple(plain[theirs].shape)}, needed is {tuple(parameter.shape)}")
        found[name] = plain[theirs]
    return found


def _their_name(name: str) -> str:
    if not name.startswith("blocks."):
        key = next(key for key in OUTER if name.startswith(key))
        return OUTER[key] + name.removeprefix(key)
    _, number, inner = name.split(".", 2)
    key = next(key for key in BLOCK if inner.startswith(key + "."))
    return f"encoder.layer.{number}.{BLOCK[key]}{inner.removeprefix(key)}"
