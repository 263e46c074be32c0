"""Operators on the program's own integers: token ids, positions, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from mobileicsa_export.tosa_graph import Tensor, TosaGraph

aten = torch.ops.aten

DTYPES = {
    torch.bool: "BOOL",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT32",  # token ids and positions; TOSA has no wider integers
}

Operator = Callable[..., Tensor]


def _gather(graph: TosaGraph, node: fx.Node, table: Tensor, index: Tensor) -> Tensor:
    return graph.reshape(graph.gather(table, index, table.dtype), tuple(node.meta["val"].shape))


def _less(graph: TosaGraph, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
    return graph.binary("GREATER", b, a, "BOOL")


def _less_than_number(graph: TosaGraph, node: fx.Node, x: Tensor) -> Tensor:
    limit = graph.constant(np.full((1,) * len(x.shape), node.args[1]), x.dtype)
    return graph.binary("GREATER", limit, x, "BOOL")


def _both(graph: TosaGraph, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
    return graph.binary("LOGICAL_AND", a, b, "BOOL")


def _select(graph: TosaGraph, node: fx.Node, condition: Tensor, *choices: Tensor) -> Tensor:
    rank = len(condition.shape)
    wide = [graph.reshape(c, (1,) * (rank - len(c.shape)) + c.shape) for c in choices]
    return graph.operator("SELECT", [condition, *wide], tuple(node.meta["val"].shape), choices[0].dtype)


def _clamp(graph: TosaGraph, node: fx.Node, x: Tensor) -> Tensor:
    low, high = (*node.args[1:], None)[:2]
    for name, limit in (("MAXIMUM", low), ("MINIMUM", high)):
        if limit is not None:
            x = graph.binary(name, x, graph.constant(np.full((1,) * len(x.shape), limit), x.dtype))
    return x


def _cast(graph: TosaGraph, node: fx.Node, x: Tensor) -> Tensor:
    dtype = DTYPES[node.meta["val"].dtype]
    return x if x.dtype == dtype else graph.operator("CAST", [x], x.shape, dtype)


# (graph, node, its tensors) -> the result.
OPERATORS: dict[Any, Operator] = {
    aten.embedding.default: _gather,
    aten.lt.Tensor: _less,
    aten.lt.Scalar: _less_than_number,
    aten.__and__.Tensor: _both,
    aten.logical_and.default: _both,
    aten.where.self: _select,
    aten.clamp.default: _clamp,
    aten.to.dtype: _cast,
}
