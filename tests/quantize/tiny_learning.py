"""A tiny random model quantised in memory, and a store that forgets or stops when told to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tiny_artifact import Silent, write_checkpoint
from torch import Tensor

from mobileicsa.calibrate.stream import WeightSource
from mobileicsa.core.scheme import find_scheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.models.load import FloatWeights, read_spec
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.pipeline import Result, quantize_model
from mobileicsa.quantize.recipe import Learning, Recipe, codes_for


class Memory:
    """A stage store; raises KeyboardInterrupt after `stop_after` saves of stages whose name starts with `stop_at`."""

    def __init__(self, stop_at: str = "learn", stop_after: int = 0) -> None:
        self.kept: dict[str, tuple[str, dict[str, Tensor], dict[str, Any]]] = {}
        self.stop_at, self.stop_after = stop_at, stop_after

    def done(self, stage: str, input_hash: str) -> bool:
        return stage in self.kept and self.kept[stage][0] == input_hash

    def load(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        _, tensors, data = self.kept[stage]
        return {name: t.clone() for name, t in tensors.items()}, data

    def save(self, stage: str, input_hash: str, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        self.kept[stage] = (input_hash, {name: t.clone() for name, t in tensors.items()}, data)
        if stage.startswith(self.stop_at) and self.stop_after:
            self.stop_after -= 1
            if self.stop_after == 0:
                raise KeyboardInterrupt


def tiny_weights(folder: Path, **changes: Any) -> tuple[ModelSpec, FloatWeights]:
    checkpoint = open_checkpoint(str(write_checkpoint(folder, **changes)))
    spec = read_spec(checkpoint)
    return spec, FloatWeights(spec, checkpoint.tensors)


def windows(count: int = 96, length: int = 20, vocab: int = 259) -> Tensor:
    return torch.randint(3, vocab, (count, length), generator=torch.Generator().manual_seed(5))


def quantized(
    spec: ModelSpec,
    weights: WeightSource,
    *learn: Learning,
    scheme: str = "w4a8",
    store: Memory | None = None,
    prefix_tokens: int = 1,
    limits: Limits | None = None,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> Result:
    given = {"prefix_tokens": prefix_tokens, "ranges": "mse", "weights": "gptq", "learn": learn, **fields}
    recipe = Recipe(name="tiny", **given)
    return quantize_model(
        spec,
        weights,
        windows(),
        codes_for(find_scheme(scheme), recipe),
        recipe,
        store=store or Memory(),
        identity="tiny",
        progress=Silent(),
        limits=limits,
    )
