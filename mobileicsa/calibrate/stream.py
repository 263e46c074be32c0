"""Layer-by-layer streaming: one block's weights in memory at a time, the calibration batch's hidden states between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import DecoderLayer, Embedding, LayerCache, positions_for
from mobileicsa.models.placed import PlacedWindows

# Windows per forward pass: large enough for full matmul speed on a few cores, small enough for the scores tensor.
BATCH = 4


class NamedWeights(Protocol):
    """Canonical float32 weights by name."""

    def get(self, name: str) -> Tensor: ...


class WeightSource(NamedWeights, Protocol):
    """Those of a whole model; `fill` loads a module's parameters whose names start with `prefix`."""

    def fill(self, module: nn.Module, prefix: str) -> None: ...


def load_layer(spec: ModelSpec, index: int, weights: WeightSource) -> DecoderLayer:
    """Block `index` with float weights and every inner edge present."""
    layer = DecoderLayer(spec, index, primitive=True)
    weights.fill(layer, f"layers.{index}.")
    return layer.eval()


@dataclass
class Stream:
    """Hidden states on their way through the model.

    content (N, T, hidden): the calibration windows; prefix (1, P, hidden): the fixed prefix, P may be 0;
    quantized: the windows as the quantised model has them, where a recipe asks for it;
    offsets (N,) int64: how many positions further on than right behind the prefix each window stands; None: 0.
    """

    content: Tensor
    prefix: Tensor
    quantized: Tensor | None = None
    offsets: Tensor | None = None

    def to(self, device: torch.device) -> Stream:
        return Stream(**{name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def batches(self) -> int:
        return -(-self.content.shape[0] // BATCH)


def embed(
    spec: ModelSpec,
    weights: WeightSource,
    prefix_ids: tuple[int, ...],
    windows: Tensor,
    offsets: Tensor | None = None,
) -> Stream:
    """Start of the stream: windows (N, T) token ids that follow the prefix, `offsets` (N,) positions further on."""
    with torch.device("meta"):
        embedding = Embedding(spec)
    weights.fill(embedding, "embed.")
    prefix = torch.tensor([prefix_ids], dtype=torch.int64)
    return Stream(embedding(windows), embedding(prefix), offsets=offsets)


def run_prefix(spec: ModelSpec, layer: DecoderLayer, stream: Stream) -> tuple[Tensor, LayerCache]:
    """The prefix through one block: its next hidden states and its stored K/V (1, kv_heads, P, head_dim)."""
    length = stream.prefix.shape[1]
    if length == 0:
        empty = stream.prefix.new_zeros((1, spec.num_kv_heads, 0, spec.head_dim))
        return stream.prefix, (empty, empty)
    ropes, masks = positions_for(spec, 0, length, stream.prefix.device)
    rope = None if layer.layer.rope is None else ropes[layer.layer.rope]
    output, cache = layer(stream.prefix, rope, masks[layer.layer.sliding_window])
    return output, cache


def run_content(
    spec: ModelSpec,
    layer: DecoderLayer,
    content: Tensor,
    past: LayerCache,
    tick: Callable[[], None] = lambda: None,
    offsets: Tensor | None = None,
) -> Iterator[Tensor]:
    """The windows through one block, batch by batch, attending to the prefix's K/V; each `offsets` (N,) further on."""
    placed = PlacedWindows(spec, past[0].shape[2], content.shape[1], content.device)
    if offsets is None:
        offsets = torch.zeros(content.shape[0], dtype=torch.int64, device=content.device)
    for batch, places in zip(torch.split(content, BATCH), torch.split(offsets, BATCH), strict=True):
        ropes, masks = placed.at(places)
        rope = None if layer.layer.rope is None else ropes[layer.layer.rope]
        expanded = (past[0].expand(batch.shape[0], -1, -1, -1), past[1].expand(batch.shape[0], -1, -1, -1))
        output, _ = layer(batch, rope, masks[layer.layer.sliding_window], expanded)
        tick()
        yield output
