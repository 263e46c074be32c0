"""A shard's exported QDQ program -> TOSA integer operators.

Between two quantisations the program is real-valued; here it is integers with a scale kept at compile time, so that
every quantisation is one RESCALE of a sum, exact unless 32 bits could overflow. Nothing real-valued is left, and no
scale is made up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.tosa_arithmetic import Arithmetic
from mobileicsa_export.tosa_chains import DEQUANTIZE, QUANTIZE, Chain, arguments, find_chains
from mobileicsa_export.tosa_graph import MAX_RANK, Tensor, TosaGraph
from mobileicsa_export.tosa_integers import DTYPES, OPERATORS
from mobileicsa_export.tosa_moves import MOVES, destination
from mobileicsa_export.tosa_products import Products
from mobileicsa_export.tosa_values import Coded, Constant, Integers, Sum, Value, check_range

aten = torch.ops.aten

GATES = (QUANTIZE, DEQUANTIZE)
DEQUANTIZE_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default
NOTHING = (aten._assert_tensor_metadata.default,)


@dataclass(frozen=True)
class Lowered:
    """A flatbuffer, its inputs and outputs in order, and the program's operators that it holds (Q/DQ not counted).

    `grids`: (scale, zero point), by name, of inputs and outputs that are real-valued in the program.
    """

    flatbuffer: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: Counter[str]
    grids: dict[str, tuple[float, int]]


def lower(
    program: ExportedProgram, inputs: tuple[str, ...], outputs: tuple[str, ...], *, real_ends: bool = False
) -> Lowered:
    """`inputs` and `outputs` name the program's own. Raises Unsupported, never leaves an operator out.

    `real_ends`: the caller converts, by `grids`, inputs that are quantised before all else and outputs that were last.
    """
    return _Lowering(program, real_ends).run(inputs, outputs)


class _Lowering:
    def __init__(self, program: ExportedProgram, real_ends: bool) -> None:
        self.program, self.real_ends = program, real_ends
        self.graph = TosaGraph()
        self.arithmetic = Arithmetic(self.graph)
        self.products = Products(self.arithmetic)
        self.values: dict[fx.Node, Value] = {}
        self.grids: dict[str, tuple[float, int]] = {}
        self.handlers: dict[Any, Callable[[fx.Node], Value]] = {
            aten.add.Tensor: self._sum,
            aten.sub.Tensor: self._sum,
            aten.mul.Tensor: self._product,
            aten.sum.dim_IntList: self._total,
            aten.amax.default: self._largest,
            aten.linear.default: self._linear,
            aten.matmul.default: self._matmul,
            aten.cat.default: self._concatenate,
            **dict.fromkeys(OPERATORS, self._integers),
            **dict.fromkeys(MOVES, self._move),
        }

    def run(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Lowered:
        tensors = self._placeholders(inputs)
        nodes = self.program.graph.nodes
        self.numbers = self._one_element_constants()
        self.chains = find_chains(self.program.graph, self.numbers)
        needed = self._needed()
        for node in nodes:
            if node in needed and node.op == "call_function":
                self.values[node] = self._value(node)
        results = []
        for name, argument in zip(outputs, arguments(self.program.graph.output_node())[0], strict=True):
            results.append(self._output(name, argument))
            self.graph.output(results[-1])
        counted = Counter(_name(n) for n in nodes if n.op == "call_function" and self._computes(n))
        return Lowered(self.graph.bytes(), tensors, tuple(results), counted, self.grids)

    def _computes(self, node: fx.Node) -> bool:
        """Neither a conversion nor arithmetic on constants."""
        gates = (*GATES, DEQUANTIZE_CHANNEL, *NOTHING)
        return node.target not in gates and node not in self.numbers

    def _one_element_constants(self) -> dict[fx.Node, float]:
        """Nodes whose value is one number, whatever the inputs."""
        small: dict[fx.Node, torch.Tensor] = {}
        for node in self.program.graph.nodes:
            value = self.values.get(node)
            if isinstance(value, Constant) and value.value is not None and value.value.numel() == 1:
                small[node] = value.value
            elif node.op == "call_function" and node.all_input_nodes and all(n in small for n in node.all_input_nodes):
                small[node] = node.target(*fx.map_arg(node.args, small.get), **node.kwargs)
        return {node: float(value) for node, value in small.items() if value is not None}

    def _needed(self) -> set[fx.Node]:
        """What the outputs depend on, the inner operators of tables left out."""
        needed: set[fx.Node] = set()
        waiting = list(self.program.graph.output_node().all_input_nodes)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                chain = self.chains.get(node)
                waiting.extend(node.all_input_nodes if chain is None else [chain.source])
        return needed

    def _placeholders(self, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        made: list[Tensor] = []
        nodes = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(nodes, self.program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                self.values[node] = given = self._input(names[len(made)], node)
                made.append(given.tensor)
            elif node.users:
                found = self.program.state_dict.get(spec.target)
                self.values[node] = Constant(self.program.constants[spec.target] if found is None else found)
        return tuple(made)

    def _input(self, name: str, node: fx.Node) -> Integers | Coded:
        value = node.meta["val"]
        if not value.is_floating_point():
            return Integers(self.graph.input(name, value.shape, DTYPES[value.dtype]))
        found = destination(node) if self.real_ends else None
        if found is None:
            raise Unsupported(name, "a real-valued input")
        self.grids[name] = found[:2]
        return Coded(self.graph.input(name, value.shape, DTYPES[found[2]]), *found[:2])

    def _output(self, name: str, node: fx.Node) -> Tensor:
        value = self.values[node]
        if not (self.real_ends and isinstance(value, Coded)):
            return self._stored(node)
        self.grids[name] = (value.scale, value.zero)
        return value.tensor

    def _value(self, node: fx.Node) -> Value:
        if node.target is DEQUANTIZE_CHANNEL:
            return self._channels(node)
        if node in self.chains:
            return self._table(node, self.chains[node])
        if node.target in GATES:
            return self._gate(node)
        given = [self.values[n] for n in node.all_input_nodes]
        if all(isinstance(v, Constant) and v.codes is None for v in given):
            return Constant(self._evaluated(node))
        handler = self.handlers.get(node.target)
        if handler is None:
            raise Unsupported(_name(node), "the TOSA back end has no integer form of it")
        if len(node.meta["val"].shape) > MAX_RANK:
            raise Unsupported(_name(node), f"has more than {MAX_RANK} dimensions")
        return handler(node)

    def _evaluated(self, node: fx.Node) -> torch.Tensor:
        def real(n: fx.Node) -> torch.Tensor | None:
            value = self.values[n]
            assert isinstance(value, Constant)
            return value.value

        with torch.no_grad():
            found: torch.Tensor = node.target(*fx.map_arg(node.args, real), **node.kwargs)  # type: ignore[operator]
        return found

    def _gate(self, node: fx.Node) -> Value:
        source, scale, zero, low, high, dtype = arguments(node)
        value = self.values[source]
        stores = node.target is QUANTIZE
        if isinstance(value, Constant) and value.codes is None:
            if stores:
                return Constant(self._evaluated(node))
            assert value.value is not None
            return Constant(None, value.value.numpy().astype(np.int64) - zero, scale)
        if stores:
            name = DTYPES[dtype]
            check_range(node.name, low, high, name)
            return Integers(self.arithmetic.quantize(value, scale, zero, name, node.name))
        return Coded(self._stored(source), scale, zero)

    def _channels(self, node: fx.Node) -> Constant:
        codes, scale, zero, axis, low, high, *_ = arguments(node)
        value, scales, zeros = (getattr(self.values[n], "value", None) for n in (codes, scale, zero))
        if value is None or scales is None or zeros is None or axis != 0 or bool(zeros.any()):
            raise Unsupported(node.name, "a weight is not a symmetric constant with one scale per output channel")
        bits = (int(high) - int(low)).bit_length()
        return Constant(None, value.numpy().astype(np.int64), scales.numpy().astype(np.float64), bits)

    def _stored(self, node: Any) -> Tensor:
        """The integer tensor of a node; a constant becomes one."""
        value = self.values[node]
        if isinstance(value, Constant) and value.value is not None and not value.value.is_floating_point():
            return self.graph.constant(value.value.numpy(), DTYPES[value.value.dtype])
        if not isinstance(value, Integers):
            raise Unsupported(node.name, "a real-valued tensor is used as integers")
        return value.tensor

    def _whole(self, *nodes: Any) -> bool:
        """Whether an operator works on the program's own integers."""
        return any(isinstance(self.values[node], Integers) for node in nodes)

    def _operands(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Both operands of a sum or a product; a bare number has no encoding."""
        for operand in arguments(node):
            if not isinstance(operand, fx.Node):
                raise Unsupported(node.name, f"{operand} is a number without an encoding")
        return arguments(node)

    def _sum(self, node: fx.Node) -> Value:
        a, b = self._operands(node)
        if node.kwargs.get("alpha", 1) != 1:
            raise Unsupported(node.name, "a summand has a factor, alpha")
        subtract = node.target is aten.sub.Tensor
        if self._whole(a, b):
            name = "SUB" if subtract else "ADD"
            return Integers(self.graph.binary(name, self._stored(a), self._stored(b)))
        return self.arithmetic.add(self.values[a], self.values[b], node.name, subtract=subtract)

    def _product(self, node: fx.Node) -> Value:
        a, b = (self.values[n] for n in self._operands(node))
        return self.arithmetic.multiply(a, b, node.name)

    def _total(self, node: fx.Node) -> Value:
        x, (axis,), keep = arguments(node)
        assert keep
        return self.arithmetic.total(self.values[x], axis % len(x.meta["val"].shape), node.name)

    def _largest(self, node: fx.Node) -> Value:
        x, (axis,), keep = arguments(node)
        value = self.values[x]
        if not isinstance(value, Coded) or not keep:
            raise Unsupported(node.name, "the largest of a tensor that is not quantised")
        axis %= len(value.tensor.shape)
        return replace(value, tensor=self.graph.reduce("REDUCE_MAX", value.tensor, axis))

    def _linear(self, node: fx.Node) -> Value:
        x, weight, *more = (self.values[n] for n in arguments(node))
        bias = more[0] if more else None
        assert isinstance(weight, Constant)
        assert bias is None or isinstance(bias, Constant)
        return self.products.linear(x, weight, bias, node.name)

    def _matmul(self, node: fx.Node) -> Value:
        a, b = (self.values[n] for n in arguments(node))
        return self.products.matmul(a, b, node.name)

    def _table(self, node: fx.Node, chain: Chain) -> Integers:
        *_, low, high, dtype = arguments(chain.steps[0])
        check_range(node.name, low, high, DTYPES[dtype])
        codes = chain.table(self.numbers)
        return Integers(self.arithmetic.table(self._stored(chain.source), codes, DTYPES[arguments(node)[5]]))

    def _move(self, node: fx.Node) -> Value:
        value = self.values[arguments(node)[0]]
        if isinstance(value, Sum):
            found = destination(node)
            if found is None:
                value = self.arithmetic.one_scale(value)
            else:
                # Rounding before or after moving is the same; before, a channel is still the last axis.
                scale, zero, dtype = found
                value = Coded(self.arithmetic.quantize(value, scale, zero, DTYPES[dtype], node.name), scale, zero)
        if isinstance(value, Constant):
            if value.value is None:
                raise Unsupported(node.name, "moves a constant's axes after it is dequantised")
            value = Integers(self._stored(arguments(node)[0]))
        return replace(value, tensor=MOVES[node.target](self.graph, value.tensor, node))

    def _concatenate(self, node: fx.Node) -> Value:
        parts, axis = arguments(node)[0], int(arguments(node)[1]) if len(node.args) > 1 else 0
        axis %= len(node.meta["val"].shape)
        if self._whole(*parts):
            return Integers(self.graph.concatenate([self._stored(p) for p in parts], axis))
        return self.arithmetic.concatenate([self.values[p] for p in parts], axis, node.name)

    def _integers(self, node: fx.Node) -> Value:
        tensors = [self._stored(argument) for argument in node.args if isinstance(argument, fx.Node)]
        return Integers(OPERATORS[node.target](self.graph, node, *tensors))


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.")
