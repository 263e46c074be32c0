"""Read a safetensors file of our own (any dtype) into memory."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mobileicsa.core.errors import VerificationError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file; VerificationError naming it when it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise VerificationError(f"{path}: cannot be read: {error}", hint="the file is damaged: make it anew") from error
