"""mobileicsa: from a Hugging Face checkpoint to verified integer-only artifacts for phones and NPUs.

The two model classes are here, `quantize` and `export` in `mobileicsa.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobileicsa.artifact.model import FloatModel, QuantizedModel

__all__ = ["FloatModel", "QuantizedModel"]


def __getattr__(name: str) -> Any:
    """Import on first use: `mobileicsa --help` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'mobileicsa' has no attribute {name!r}")
    from mobileicsa.artifact import model

    return getattr(model, name)
