"""A checkpoint with an adapter merged into its weights: what is quantised when one adapter is enough."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mobileicsa.io.checkpoint import Checkpoint
from mobileicsa.io.hashing import sha256_parts
from mobileicsa.io.tensors import TensorSource
from mobileicsa.models.adapter import PeftAdapter
from mobileicsa.models.tensor_names import plain_name


class MergedSource:
    """The tensors of `source` with W + up @ down for every linear of the adapter."""

    def __init__(self, source: TensorSource, adapter: PeftAdapter) -> None:
        self._source, self._adapter = source, adapter

    def names(self) -> tuple[str, ...]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def get(self, name: str) -> Tensor:
        tensor = self._source.get(name)
        update = self._adapter.updates.get(plain_name(name).removesuffix(".weight"))
        return tensor if update is None else tensor.addmm_(update.up, update.down)

    def identity(self) -> str:
        return sha256_parts([("tensors", self._source.identity()), ("adapter", self._adapter.sha256)])

    def check_unchanged(self) -> None:
        self._source.check_unchanged()


def merged(checkpoint: Checkpoint, adapter: PeftAdapter) -> Checkpoint:
    """The same model with the adapter in its weights, and an identity of its own."""
    return replace(
        checkpoint,
        tensors=MergedSource(checkpoint.tensors, adapter),
        identity=sha256_parts([("model", checkpoint.identity), ("adapter", adapter.sha256)]),
    )
