"""mobileicsa: from a Hugging Face checkpoint to verified integer-only artifacts for phones and NPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobileicsa.api import export, quantize
    from mobileicsa.artifact.model import FloatModel, QuantizedModel

__all__ = ["FloatModel", "QuantizedModel", "export", "quantize"]

_HOMES = {
    "FloatModel": "mobileicsa.artifact.model",
    "QuantizedModel": "mobileicsa.artifact.model",
    "export": "mobileicsa.api",
    "quantize": "mobileicsa.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `mobileicsa --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mobileicsa' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
