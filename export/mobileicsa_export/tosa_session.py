"""Runs TOSA shards one after the other on Arm's reference model, which defines what an operator computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.shards import layer_names
from mobileicsa_export.tosa_graph import NUMPY
from mobileicsa_export.tosa_shards import INDEX, Record, each_record, identity, read_flatbuffer, read_index

LEVEL = "EIGHTK"


@dataclass(frozen=True)
class Loaded:
    record: Record
    flatbuffer: bytes


class TosaSession:
    """Each method's flatbuffers are read at its first call. Slow: the reference model is exact, not fast."""

    def __init__(self, folder: Path, spec: ModelSpec, target: Target) -> None:
        self.folder, self.spec = folder, spec
        self.index = read_index(folder)
        for key, value in identity(spec, target).items():
            if self.index.get(key) != value:
                raise VerificationError(
                    f"{folder / INDEX}: {key} differs", hint="the files belong to another model or target"
                )
        self._loaded: dict[str, list[Loaded]] = {}
        self.cache_names = layer_names(range(spec.num_layers), "past")
        self._present = layer_names(range(spec.num_layers), "present")

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        values = self.integers(method, token_ids, position, cache)
        grid = self.index["logits"]
        steps = values["logits"].astype(np.float32) - np.float32(grid["zero_point"])
        return steps * np.float32(grid["scale"]), [values[name] for name in self._present]

    def integers(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> dict[str, NDArray[Any]]:
        """Every tensor that shards exchange, by its name; `hidden` as the last layer left it."""
        values: dict[str, NDArray[Any]] = dict(zip(self.cache_names, cache, strict=True))
        values["input_ids"], values["position"] = token_ids, np.array([position])
        for shard in self.shards(method):
            values.update(run_shard(shard, values))
        return values

    def close(self) -> None:
        self._loaded = {}

    def shards(self, method: str) -> list[Loaded]:
        """Those of one method, in the order they run."""
        if method not in self._loaded:
            records = each_record(self.folder, method)
            self._loaded[method] = [Loaded(record, read_flatbuffer(self.folder, record)) for record in records]
        return self._loaded[method]


def run_shard(shard: Loaded, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs of one shard by name; `values` holds its inputs, of any integer type."""
    import tosa_reference_model

    record = shard.record
    inputs: list[NDArray[Any]] = []
    for name, shape, dtype in record.inputs:
        array: NDArray[Any] = np.ascontiguousarray(values[name], dtype=NUMPY[dtype])
        if list(array.shape) != shape:
            raise VerificationError(f"{record.file}: {name} has shape {list(array.shape)}, not {shape}")
        inputs.append(array)
    outputs, status = tosa_reference_model.run(shard.flatbuffer, inputs, tosa_level=LEVEL)
    if status != tosa_reference_model.GraphStatus.TOSA_VALID:
        raise VerificationError(f"{record.file}: the reference model refuses it: {status}")
    return {name: np.array(array) for (name, *_), array in zip(record.outputs, outputs, strict=True)}
