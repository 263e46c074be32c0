"""Adapters beside the linears of a frozen program: low-rank products whose factors are inputs, the base is constant.

y = out(x W^T + b + (x A) B). Factors have the largest rank that any adapter of the program has at that linear; smaller
ones are padded with zeros, which changes nothing. Without an adapter the factors are zeros: the base's own integers.

A fused program (host CPU) computes the two products in float32 between the linear's encoded borders. A primitive one
(integer-only compilers) has them static: factors of 8 bits, and encodings of x A, of the update and of the base's own
product, which is that of its output. All adapters of a program share these encodings: x A by scaling each rank so
that calibration text fills [-1, 1], the others by the widest adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobileicsa.core.encoding import TensorEncoding, activation, symmetric
from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.edge import Edge
from mobileicsa.program.qdq import QdqEdge, QuantLinear

FACTOR_BITS = 8


@dataclass(frozen=True)
class PlanAdapter:
    """An adapter in a plan's basis.

    `tensors`: for each linear `<path>.a` (in, r) and `<path>.b` (r, out) float32, no value of x a farther from 0 than
    1 on calibration text; `<path>.range` (2,), least and largest of x a b there; the rows and logits that the prefix
    has with the adapter, `prefix.*` as a `FrozenModel` names them. `facts`: for the report.
    """

    name: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def linears(self) -> list[str]:
        return [name.removesuffix(".a") for name in self.tensors if name.endswith(".a")]

    @property
    def prefix(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith("prefix.")}


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The encodings of one linear's integer adapter path."""

    a: TensorEncoding
    inner: TensorEncoding
    b: TensorEncoding
    update: TensorEncoding
    base: TensorEncoding


@dataclass(frozen=True)
class Room:
    """What a program has inputs for: the rank of each linear's factors, and their encodings where they are integers."""

    ranks: dict[str, int]
    grids: dict[str, Grids]


def room_for(plan: QuantPlan, adapters: Iterable[PlanAdapter], *, primitive: bool) -> Room:
    """The least room that holds each of these adapters."""
    ranks: dict[str, int] = {}
    widest: dict[str, list[float]] = {}
    for adapter in adapters:
        for linear in adapter.linears:
            a, b, ends = (adapter.tensors[f"{linear}.{part}"] for part in ("a", "b", "range"))
            ranks[linear] = max(ranks.get(linear, 0), a.shape[1])
            found = [float(a.abs().max()), float(b.abs().max()), -float(ends[0]), float(ends[1])]
            widest[linear] = [max(pair) for pair in zip(widest.get(linear, found), found, strict=True)]
    grids = {linear: _grids(plan, linear, *ends) for linear, ends in widest.items()} if primitive else {}
    return Room(ranks, grids)


def _grids(plan: QuantPlan, linear: str, a: float, b: float, below: float, above: float) -> Grids:
    base = plan.edges[output_edge(linear, plan.edges)]
    return Grids(
        a=symmetric([a], FACTOR_BITS, narrow=False),
        inner=symmetric([1.0], FACTOR_BITS, narrow=False),
        b=symmetric([b], FACTOR_BITS, narrow=False),
        update=activation(-below, above, base.bits),
        base=base,
    )


def output_edge(linear: str, edges: Mapping[str, TensorEncoding]) -> str:
    """The edge that a linear's output goes to; values have none before they are in the cache's form."""
    own = f"{linear}.out"
    return own if own in edges else f"{linear.rpartition('.')[0]}.v_out"


class Update(nn.Module):
    """The low-rank product of one linear. `held`: its two factors (1, in, r) and (1, r, out); none: no adapter."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], grids: Grids | None) -> None:
        super().__init__()
        self.shapes = shapes
        self.dtype = torch.float32 if grids is None else torch.int8
        self.held: list[Tensor] = []
        self.encoded = grids is not None
        if grids is not None:
            self.a, self.b = _edge(grids.a), _edge(grids.b)
            self.inner, self.update, self.base = _edge(grids.inner), _edge(grids.update), _edge(grids.base)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, T, in) and the base's product y (B, T, out) -> their sum with the update."""
        if not self.held:
            return y
        if not self.encoded:
            a, b = (factor if factor.dtype == x.dtype else factor.to(x.dtype) for factor in self.held)
            return y + torch.matmul(torch.matmul(x, a), b)
        a, b = self.a.load(self.held[0]), self.b.load(self.held[1])
        update = self.update(torch.matmul(self.inner(torch.matmul(x, a)), b))
        return self.base(y) + update


def _edge(encoding: TensorEncoding) -> QdqEdge:
    return QdqEdge(Edge("derived"), encoding)


def attach(decoder: Decoder, room: Room) -> None:
    """Give a frozen decoder's linears their updates, in place."""
    for linear, rank in room.ranks.items():
        module = decoder.get_submodule(linear)
        assert isinstance(module, QuantLinear)
        out_features, in_features = module.weight.shape
        module.lora = Update([(1, in_features, rank), (1, rank, out_features)], room.grids.get(linear))


def updates(decoder: nn.Module) -> dict[str, Update]:
    """The decoder's updates by their paths, in the order of its linears."""
    return {name: module for name, module in decoder.named_modules() if isinstance(module, Update)}


def adapter_inputs(decoder: nn.Module) -> dict[str, Tensor]:
    """The inputs of the decoder's updates, in order, by name (`layers.0.attn.q_proj.lora.a`), as zeros."""
    return {
        f"{name}.{part}": torch.zeros(shape, dtype=update.dtype)
        for name, update in updates(decoder).items()
        for part, shape in zip("ab", update.shapes, strict=True)
    }


def padded(adapter: PlanAdapter, decoder: nn.Module) -> dict[str, Tensor]:
    """An adapter as the inputs of a decoder that has room for it; InputError naming what does not fit."""
    found = adapter_inputs(decoder)
    for linear in adapter.linears:
        for part, axis in (("a", 2), ("b", 1)):
            factor, name = adapter.tensors[f"{linear}.{part}"][None], f"{linear}.lora.{part}"
            room = found[name].shape[axis] if name in found else 0
            if factor.shape[axis] > room:
                raise InputError(
                    f"adapter {adapter.name}: {linear} has rank {factor.shape[axis]}, the program has room for {room}",
                    hint="export the artifact for all of its adapters together",
                )
            update = decoder.get_submodule(f"{linear}.lora")
            if isinstance(update, Update) and update.encoded:
                factor = getattr(update, part).store(factor)
            found[name].narrow(axis, 0, factor.shape[axis]).copy_(factor)
    return found


def use(decoder: nn.Module, factors: Mapping[str, Tensor] | None) -> None:
    """Make the inputs of `padded` those of every following call; None: no adapter."""
    for name, update in updates(decoder).items():
        update.held = [] if factors is None else [factors[f"{name}.a"], factors[f"{name}.b"]]


@contextmanager
def given(decoder: nn.Module, factors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the updates have these inputs, in the order of `adapter_inputs`; what they held where there are none."""
    if not factors:
        yield
        return
    places = list(updates(decoder).values())
    for index, update in enumerate(places):
        update.held = list(factors[2 * index : 2 * index + 2])
    try:
        yield
    finally:
        for update in places:
            update.held = []
