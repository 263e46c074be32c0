"""Any module quantised by torchao's PT2E: which tensors of an exported graph get an encoding.

Which one each gets is asked of `Specs` (quantize/pt2e_specs.py): ranges that observers see, or a plan made before.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

from mobileicsa.quantize.pt2e_specs import Specs

aten = torch.ops.aten
DEQUANTIZE_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default

# Role of what a linear gives, by the last part of its module's name; "mlp" for others.
LINEAR_ROLES = {"q": "qkv", "k": "kv", "v": "kv", "out": "branch", "down": "branch", "patch": "branch"}
# Role of what an operator gives. Products are scores, or inside a norm that is taken apart: 16 bits both.
OPERATOR_ROLES: dict[object, str] = {
    aten.add.Tensor: "residual",
    aten.cat.default: "residual",
    aten.mul.Tensor: "scores",
    aten.softmax.int: "probs",
    aten.sub.Tensor: "internal",
    aten.sum.dim_IntList: "internal",
    aten.sqrt.default: "internal",
    aten.reciprocal.default: "internal",
    aten.exp.default: "internal",
}
# Operators of which an operand may be one of the graph's own constants.
WITH_CONSTANTS = (aten.add.Tensor, aten.mul.Tensor, aten.cat.default)


class SchemeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates linears (input, weight, output), sums, concatenations, attention, and what norms are made of.

    A norm, a softmax or a GELU that is one operator stays a float region between encoded tensors, as on every fused
    target. `primitive`: constants get an encoding too, so that nothing real-valued is left where the graph has no such
    operator. `logits`: the last part of the name of the linears that give logits.
    """

    def __init__(self, specs: Specs, logits: str, *, primitive: bool) -> None:
        super().__init__()
        self.specs, self.roles, self.primitive = specs, {**LINEAR_ROLES, logits: "logits"}, primitive

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target is aten.linear.default:
                self._linear(node)
            elif node.target is aten.amax.default:
                # The largest of some integers is one of them.
                _annotate(node, {}, SharedQuantizationSpec(node.args[0]))
            elif node.target in OPERATOR_ROLES and not _read_by_linears(node):
                _annotate(node, self._constants(node), self.specs.tensor(node, OPERATOR_ROLES[node.target]))
            elif node.target in WITH_CONSTANTS:
                _annotate(node, self._constants(node), None)
        return model

    def _linear(self, node: fx.Node) -> None:
        x, weight, *_ = node.all_input_nodes
        role = self.roles.get(module_path(node).rpartition(".")[2], "mlp")
        inputs = {x: self.specs.tensor(x, "norm_out"), weight: self.specs.weight(node)}
        _annotate(node, inputs, self.specs.tensor(node, role))

    def _constants(self, node: fx.Node) -> dict[fx.Node, QuantizationSpecBase]:
        if not self.primitive or node.target not in WITH_CONSTANTS:
            return {}
        return {source: self.specs.constant() for source in node.all_input_nodes if _constant(source)}

    def validate(self, model: fx.GraphModule) -> None: ...


def _annotate(node: fx.Node, inputs: dict[Any, Any], output: QuantizationSpecBase | None) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=output, _annotated=True
    )


def _read_by_linears(node: fx.Node) -> bool:
    """The encoding of a linear's input is then the only one it needs."""
    return all(user.target is aten.linear.default for user in node.users)


def _constant(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    return node.op == "call_function" and bool(node.all_input_nodes) and all(map(_constant, node.all_input_nodes))


def module_path(node: fx.Node) -> str:
    """Path of the module that a node comes from, from the exported module down; the same for each of its calls."""
    stack = node.meta.get("nn_module_stack") or {}
    path: str = next(reversed(stack.values()))[0] if stack else ""
    return path.partition("@")[0]


def quantize_module(
    module: torch.nn.Module, samples: Iterable[tuple[Tensor, ...]], quantizer: SchemeQuantizer
) -> fx.GraphModule:
    """The Q/DQ graph of a module that has seen the samples, which are its arguments; their shapes are the graph's."""
    arguments = list(samples)
    with torch.no_grad():
        graph = torch.export.export(module.eval(), arguments[0], strict=False).module()
        prepared = prepare_pt2e(graph, quantizer)
        for each in arguments:
            prepared(*each)
        converted: fx.GraphModule = convert_pt2e(prepared)
        _round_biases(converted, integers=quantizer.primitive)
    return converted


def _round_biases(graph: fx.GraphModule, *, integers: bool) -> None:
    """Biases become multiples of scale(input) * scale(weight), as integer kernels round them anyway: now all runtimes
    add the same number. A linear that is called with several input scales has a bias for each call. They are kept as
    `integers` and dequantised where nothing real-valued may be left."""
    for index, node in enumerate(graph.graph.find_nodes(op="call_function", target=aten.linear.default)):
        x, weight, bias = node.args
        step = attrgetter(weight.args[1].target)(graph).double() * x.args[1]
        value = attrgetter(bias.target)(graph)
        codes = (value.double() / step).round()
        with graph.graph.inserting_before(node):
            if integers:
                rounded = _dequantized(graph, f"bias_{index}", codes, step)
            else:
                graph.register_buffer(f"rounded_bias_{index}", (codes * step).to(value.dtype))
                rounded = graph.graph.get_attr(f"rounded_bias_{index}")
            node.replace_input_with(bias, rounded)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _dequantized(graph: fx.GraphModule, name: str, codes: Tensor, step: Tensor) -> fx.Node:
    limits = torch.iinfo(torch.int32)
    parts = {
        f"{name}_codes": codes.clamp(limits.min, limits.max).to(torch.int32),
        f"{name}_scale": step.to(torch.float32),
        f"{name}_zero": torch.zeros(step.shape, dtype=torch.int64),
    }
    for part, tensor in parts.items():
        graph.register_buffer(part, tensor)
    nodes = [graph.graph.get_attr(part) for part in parts]
    return graph.graph.call_function(DEQUANTIZE_CHANNEL, (*nodes, 0, limits.min, limits.max, torch.int32))
