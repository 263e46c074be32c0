"""adapter_model.safetensors of a peft LoRA: two factors a module, checked as far as no model is needed for it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.safetensors_header import read_header
from mobileicsa.io.tensors import finite
from mobileicsa.models.adapter_config import MERGE_HINT, AdapterConfig

TENSOR_FILE, PICKLE_FILE = "adapter_model.safetensors", "adapter_model.bin"
# Patterns of the config are matched with these names: long ones could take for ever.
MAX_MODULE_NAME = 200
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_AGAIN = "save the adapter again"


def read_factors(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, in) and B (out, r) of every module, by the checkpoint's name of it: float32, finite, two sides each.

    InputError for a pickle, for tensors that are no factor of a linear's LoRA, a factor that is missing or there
    twice, NaN and infinity. Whether ranks agree is for whoever has the config.
    """
    if not path.is_file():
        _refuse_without_tensors(path)
    names = _names(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint=_AGAIN) from error
    return {module: (_matrix(tensors[a], a, path), _matrix(tensors[b], b, path)) for module, (a, b) in names.items()}


def scaled(up: Tensor, config: AdapterConfig, module: str) -> Tensor:
    """B (out, r) times what the config says; InputError where that is more than float32 holds."""
    factor = config.scale_of(module)
    result = up * factor
    if not bool(torch.isfinite(result).all()):
        raise InputError(
            f"{config.where}: lora_alpha multiplies module {module} by {factor:.4g}, which is infinite there",
            hint="check lora_alpha and alpha_pattern, and how the adapter was trained",
        )
    return result


def _names(path: Path) -> dict[str, tuple[str, str]]:
    """Module to the names of its A and its B, modules sorted."""
    found: dict[str, dict[str, str]] = {}
    for name in read_header(path):
        match = _TENSOR.fullmatch(name)
        if match is None or len(match[1]) > MAX_MODULE_NAME:
            raise InputError(f"{path}: tensor {name[:200]!r} is not a factor of a linear's LoRA", hint=MERGE_HINT)
        parts = found.setdefault(match[1], {})
        if match[2] in parts:
            raise InputError(f"{path}: {name!r} and {parts[match[2]]!r} are the same factor", hint=_AGAIN)
        parts[match[2]] = name
    if not found:
        raise InputError(f"{path}: has no tensors", hint="was the adapter trained? save it again")
    for module, parts in found.items():
        for part in "AB":
            if part not in parts:
                raise InputError(f"{path}: module {module!r} has no lora_{part}", hint=_AGAIN)
    return {module: (found[module]["A"], found[module]["B"]) for module in sorted(found)}


def _matrix(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.dim() != 2 or not tensor.numel():
        raise InputError(f"{path}: tensor {name!r} has shape {list(tensor.shape)}, a factor has two sides", hint=_AGAIN)
    return finite(tensor.to(torch.float32), name, path)


def _refuse_without_tensors(path: Path) -> None:
    if path.with_name(PICKLE_FILE).exists():
        raise InputError(
            f"{path.with_name(PICKLE_FILE)}: is a Python pickle, which is never read",
            hint="load it where you trust it and save it again: save_pretrained(..., safe_serialization=True)",
        )
    raise InputError(f"{path}: not found", hint="give a folder that peft's save_pretrained wrote")
