"""One method of a frozen program cut into shards that exchange integers: tables, groups of layers, head.

A whole model is too much for some compilers at once. The shards chained are the method, integer for integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder, DecoderLayer
from mobileicsa.models.edge import Edge
from mobileicsa.program.methods import Method, attention_windows, decoder_cache_dtype, method_lengths


@dataclass(frozen=True)
class Shard:
    """A module over integers, with an example of its inputs.

    Names tell shards' tensors apart inside one method: `hidden`, `cos.<rope>`, `sin.<rope>`, `mask.<window index>`,
    `past.<layer>.key|value`, `present.<layer>.key|value`, `logits`; the entry reads `input_ids` and `position`.
    """

    name: str
    module: nn.Module
    arguments: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Entry(Method):
    """token_ids (1, T), position (1,) -> hidden (1, T, hidden), RoPE rows and masks, all as stored integers."""

    def forward(self, token_ids: Tensor, position: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        embed = self.decoder.embed
        hidden = embed.out.store(embed(token_ids))
        positions = self.positions(position, self.offsets)
        tables = [self.table_rows(name, positions) for name in table_buffers(self.decoder)]
        masks = [self.stored_mask(index, position, self.slots) for index in range(len(self.windows))]
        return (hidden, *tables, *masks)


class Layers(nn.Module):
    """hidden, RoPE rows, masks, then the cache of layers first..last-1 -> hidden and the layers' new rows."""

    def __init__(self, decoder: Decoder, first: int, last: int) -> None:
        super().__init__()
        spec = decoder.spec
        self.spec, self.first = spec, first
        self.windows = attention_windows(spec)
        self.layers = nn.ModuleList(decoder.layers[i] for i in range(first, last))
        self.hidden, self.out = residual(decoder, first), residual(decoder, last)
        self.rope_tables, self.mask = decoder.rope_tables, decoder.mask

    def forward(self, hidden: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        x = self.hidden.load(hidden)
        count = 2 * len(self.rope_tables)
        tables = [edge.load(others[2 * i + j]) for i, edge in enumerate(self.rope_tables) for j in (0, 1)]  # type: ignore[operator]
        masks = {w: self.mask.load(others[count + i]) for i, w in enumerate(self.windows)}
        past = others[count + len(self.windows) :]
        rows: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            spec = self.spec.layers[self.first + index]
            rope = None if spec.rope is None else (tables[2 * spec.rope], tables[2 * spec.rope + 1])
            x, new = layer(x, rope, masks[spec.sliding_window], (past[2 * index], past[2 * index + 1]))
            rows.extend(new)
        return (self.out.store(x), *rows)


class HeadShard(nn.Module):
    """hidden (1, T, hidden) -> logits (1, T, vocab), both as stored integers."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.hidden, self.head = residual(decoder, decoder.spec.num_layers), decoder.head

    def forward(self, hidden: Tensor) -> Tensor:
        stored: Tensor = self.head.logits.store(self.head(self.hidden.load(hidden)))
        return stored


def residual(decoder: Decoder, layer: int) -> Edge:
    """The edge that layer `layer` reads (the head, behind the last)."""
    if layer == 0:
        return decoder.embed.out
    block = decoder.layers[layer - 1]
    assert isinstance(block, DecoderLayer)
    return block.out


def table_buffers(decoder: Decoder) -> list[str]:
    return [f"{kind}_{i}" for i in range(len(decoder.rope_tables)) for kind in ("cos", "sin")]


def layer_names(layers: range, kind: str) -> list[str]:
    """`kind` is past or present."""
    return [f"{kind}.{i}.{part}" for i in layers for part in ("key", "value")]


def shards(decoder: Decoder, target: Target, method: str, *, layers: int = 1) -> Iterator[Shard]:
    """The shards of one method in the order they run, `layers` decoder layers in each of the middle ones."""
    spec, length = decoder.spec, method_lengths(target)[method]
    entry = Entry(decoder, length=length, context=target.context).eval()
    ids = torch.zeros((1, length), dtype=torch.int64), torch.zeros((1,), dtype=torch.int64)
    shared = [name.replace("_", ".") for name in table_buffers(decoder)]
    shared += [f"mask.{index}" for index in range(len(entry.windows))]
    yield Shard("entry", entry, ids, ("input_ids", "position"), ("hidden", *shared))
    with torch.no_grad():
        hidden, *tables = entry(*ids)
    cache = torch.zeros((1, spec.num_kv_heads, target.context, spec.head_dim), dtype=decoder_cache_dtype(decoder))
    for first in range(0, spec.num_layers, layers):
        group = range(first, min(first + layers, spec.num_layers))
        yield Shard(
            f"layers-{group[0]:02d}-{group[-1]:02d}",
            Layers(decoder, group.start, group.stop).eval(),
            # One tensor given twice would be one input of the exported program.
            (hidden, *tables, *(cache.clone() for _ in layer_names(group, "past"))),
            ("hidden", *shared, *layer_names(group, "past")),
            ("hidden", *layer_names(group, "present")),
        )
    yield Shard("head", HeadShard(decoder).eval(), (hidden,), ("hidden",), ("logits",))


def export_shard(shard: Shard) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(shard.module, shard.arguments, strict=False)
