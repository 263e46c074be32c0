"""Operators that move elements without computing: the same for integers of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.tosa_chains import QUANTIZE
from mobileicsa_export.tosa_graph import Tensor, TosaGraph

aten = torch.ops.aten

Move = Callable[[TosaGraph, Tensor, fx.Node], Tensor]


def _reshape(graph: TosaGraph, x: Tensor, node: fx.Node) -> Tensor:
    return graph.reshape(x, tuple(node.meta["val"].shape))


def _transpose(graph: TosaGraph, x: Tensor, node: fx.Node) -> Tensor:
    order = list(range(len(x.shape)))
    first, second = (int(d) for d in node.args[1:3])  # type: ignore[arg-type]
    order[first], order[second] = order[second], order[first]
    return graph.transpose(x, order)


def _permute(graph: TosaGraph, x: Tensor, node: fx.Node) -> Tensor:
    return graph.transpose(x, [int(d) % len(x.shape) for d in node.args[1]])  # type: ignore[union-attr,arg-type]


def _select(graph: TosaGraph, x: Tensor, node: fx.Node) -> Tensor:
    axis, index = (int(a) for a in node.args[1:3])  # type: ignore[arg-type]
    start, size = [0] * len(x.shape), list(x.shape)
    start[axis], size[axis] = index % x.shape[axis], 1
    return graph.reshape(graph.slice(x, start, size), tuple(node.meta["val"].shape))


def _slice(graph: TosaGraph, x: Tensor, node: fx.Node) -> Tensor:
    if len(node.args) > 4 and node.args[4] != 1:
        raise Unsupported(node.name, "a slice leaves elements out between others")
    axis, start, *_ = (*(int(a) for a in node.args[1:]), 0, 0)  # type: ignore[arg-type]
    offset = [0] * len(x.shape)
    offset[axis] = start % x.shape[axis]
    return graph.slice(x, offset, tuple(node.meta["val"].shape))


def _expand(graph: TosaGraph, x: Tensor, node: fx.Node) -> Tensor:
    shape = tuple(node.meta["val"].shape)
    x = graph.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
    times = [new // old for new, old in zip(shape, x.shape, strict=True)]
    return graph.operator("TILE", [x, graph.constant(times, "SHAPE")], shape, x.dtype)


def _same(graph: TosaGraph, x: Tensor, node: fx.Node) -> Tensor:
    return x


MOVES: dict[Any, Move] = {
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.expand.default: _expand,
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
}


def destination(node: fx.Node) -> tuple[float, int, torch.dtype] | None:
    """(scale, zero, dtype) of the quantisation that a tensor meets next, moved only and read by nothing else."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.target is QUANTIZE:
            return float(node.args[1]), int(node.args[2]), node.args[5]  # type: ignore[arg-type,return-value]
        if node.target not in MOVES:
            return None
    return None
