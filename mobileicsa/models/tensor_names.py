"""`PlainNames`: the tensors of a checkpoint under the names of a plain text model."""

from __future__ import annotations

from torch import Tensor

from mobileicsa.io.tensors import TensorSource

# Prefixes under which multi-modal checkpoints keep their text decoder, and the plain names they stand for.
TEXT_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


class PlainNames:
    """A `TensorSource`'s names seen as those of a plain text model."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._stored = {plain_name(name): name for name in source.names()}

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._stored))

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._source.shape(self._stored[name]))

    def get(self, name: str) -> Tensor:
        return self._source.get(self._stored[name])

    def stored_name(self, name: str) -> str:
        """What the checkpoint itself calls the tensor."""
        return self._stored[name]


def plain_name(name: str) -> str:
    """What a plain text model calls a checkpoint's tensor."""
    for prefix, plain in TEXT_PREFIXES:
        if name.startswith(prefix):
            return plain + name[len(prefix) :]
    return name
