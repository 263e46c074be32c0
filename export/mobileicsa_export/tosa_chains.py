"""Chains of operators on one code at a time: whatever lies between two codes becomes one table.

Square root, reciprocal and exp need a table anyway; a norm's mean, epsilon, root and reciprocal together are then one,
with each of the program's roundings in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)

aten = torch.ops.aten
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default

FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    aten.exp.default: torch.exp,
    aten.sqrt.default: torch.sqrt,
    aten.reciprocal.default: torch.reciprocal,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.gelu.default: torch.nn.functional.gelu,
}
WITH_A_NUMBER: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    aten.mul.Tensor: torch.mul,
    aten.add.Tensor: torch.add,
}


@dataclass(frozen=True)
class Chain:
    """From the codes of `source` (a dequantise node's input) through `steps`, the last of them a quantisation."""

    source: fx.Node
    steps: tuple[fx.Node, ...]

    def table(self, numbers: Mapping[fx.Node, float]) -> NDArray[np.int64]:
        """What each code of the source becomes, lowest first; as the simulator: float64, rounded in float32."""
        low, high = arguments(self.steps[0])[3:5]
        codes, x = torch.arange(low, high + 1), torch.empty(0)
        for step in self.steps:
            if step.target is DEQUANTIZE:
                _, scale, zero, *_ = arguments(step)
                x = ((codes.to(torch.float32) - zero) * scale).to(torch.float64)
            elif step.target is QUANTIZE:
                _, scale, zero, low, high, _ = arguments(step)
                steps = torch.nan_to_num(x.to(torch.float32) * (1.0 / scale)).to(torch.float64)
                codes = (steps.round() + zero).clamp(low, high).to(torch.int64)
            elif step.target in FUNCTIONS:
                x = FUNCTIONS[step.target](x, **step.kwargs)
            else:
                (number,) = (numbers[n] for n in arguments(step) if n in numbers)
                x = WITH_A_NUMBER[step.target](x, torch.tensor(number, dtype=torch.float64))
        found: NDArray[np.int64] = codes.numpy()
        return found


def find_chains(graph: fx.Graph, numbers: Mapping[fx.Node, float]) -> dict[fx.Node, Chain]:
    """The longest chain that ends in each quantisation with a function on its way.

    `numbers`: nodes known to be one-element constants.
    """
    found: dict[fx.Node, Chain] = {}
    for node in graph.nodes:
        if node.target is QUANTIZE and node not in numbers:
            steps = _back(node, numbers)
            if any(step.target in FUNCTIONS for step in steps):
                found[node] = Chain(steps[0].args[0], steps)  # type: ignore[arg-type]
    return found


def _back(node: fx.Node, numbers: Mapping[fx.Node, float]) -> tuple[fx.Node, ...]:
    """The operators before and with `node` back to the earliest dequantisation that one code alone decides."""
    steps: list[fx.Node] = []
    whole = 0
    while True:
        inputs = [n for n in node.all_input_nodes if n not in numbers]
        operands = 2 if node.target in WITH_A_NUMBER else 1
        known = node.target in (QUANTIZE, DEQUANTIZE) or node.target in FUNCTIONS or node.target in WITH_A_NUMBER
        # add's alpha: the lowering refuses it
        known = known and not (node.target in WITH_A_NUMBER and node.kwargs)
        if not known or len(inputs) != 1 or len(node.all_input_nodes) != operands:
            break
        steps.append(node)
        if node.target is DEQUANTIZE:
            whole = len(steps)
        (node,) = inputs
    return tuple(reversed(steps[:whole]))


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """The operator's arguments; which kind each is follows from the operator."""
    return node.args
