"""Any module quantised by torchao's PT2E: which tensors of an exported graph get an encoding, and which one.

Ranges become encodings by `core.encoding`, the same functions that a decoder's plan is made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from mobileicsa.core.encoding import activation, symmetric
from mobileicsa.core.scheme import QuantScheme

aten = torch.ops.aten

# Role of what a linear gives, by the last part of its module's name; "mlp" for others.
LINEAR_ROLES = {"q": "qkv", "k": "kv", "v": "kv", "out": "branch", "down": "branch", "patch": "branch"}
# Role of what an operator gives.
OPERATOR_ROLES: dict[object, str] = {
    aten.add.Tensor: "residual",
    aten.cat.default: "residual",
    aten.mul.Tensor: "scores",
    aten.softmax.int: "probs",
}
DTYPES = {8: torch.int8, 16: torch.int16}
CLIPS = tuple(1.0 - 0.05 * step for step in range(11))


class RangeObserver(MinMaxObserver):  # type: ignore[misc]
    """Smallest and largest value seen, as an encoding of `bits` bits."""

    def __init__(self, *, bits: int, mantissa_bits: int, **options: Any) -> None:
        super().__init__(**options)
        self.bits, self.mantissa_bits = bits, mantissa_bits

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        found = activation(float(self.min_val), float(self.max_val), self.bits, self.mantissa_bits)
        return torch.tensor(found.scale), torch.tensor(found.zero_point)


class PerChannelWeightObserver(PerChannelMinMaxObserver):  # type: ignore[misc]
    """Symmetric scales of the rows of a weight (out, in): those of `CLIPS` of the largest value that err least."""

    def __init__(self, *, bits: int, **options: Any) -> None:
        super().__init__(**options)
        self.bits = bits
        self.weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:  # it never changes
            self.weight = x.detach()
            super().forward(x)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        assert self.weight is not None
        weight, limit = self.weight.to(torch.float32), 2 ** (self.bits - 1) - 1
        largest = weight.abs().amax(dim=1)
        best = torch.full_like(largest, torch.inf)
        chosen = torch.ones_like(largest)
        for clip in CLIPS:
            scale = torch.tensor(symmetric((largest * clip).tolist(), self.bits, axis=0).scale)[:, None]
            error = ((weight / scale).round().clamp(-limit, limit) * scale - weight).square().sum(dim=1)
            better = error < best
            best = torch.where(better, error, best)
            chosen = torch.where(better, scale[:, 0], chosen)
        return chosen, torch.zeros_like(chosen, dtype=torch.int64)


class SchemeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates linears (input, weight, output), sums, concatenations and attention by a scheme's bits for each role.

    Norms, softmax and GELU stay float regions between encoded tensors, as on every fused target. `logits`: the last
    part of the name of the linears that give logits.
    """

    def __init__(self, scheme: QuantScheme, logits: str) -> None:
        super().__init__()
        self.scheme, self.roles = scheme, {**LINEAR_ROLES, logits: "logits"}
        specs: dict[str, QuantizationSpec] = {}
        self._spec: Callable[[str], QuantizationSpec] = lambda role: specs.setdefault(role, self._made(role))
        bits, limit = scheme.weight_bits, 2 ** (scheme.weight_bits - 1) - 1
        self.weight = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-limit,
            quant_max=limit,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=PerChannelWeightObserver.with_args(bits=bits),
        )

    def _made(self, role: str) -> QuantizationSpec:
        bits = self.scheme.bits(role)
        observer = RangeObserver.with_args(bits=bits, mantissa_bits=self.scheme.mantissa_bits(role))
        return QuantizationSpec(
            dtype=DTYPES[bits],
            quant_min=-(2 ** (bits - 1)),
            quant_max=2 ** (bits - 1) - 1,
            qscheme=torch.per_tensor_affine,
            is_dynamic=False,
            observer_or_fake_quant_ctr=observer,
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target is aten.linear.default:
                self._linear(node)
            elif node.target in OPERATOR_ROLES:
                self._annotate(node, {}, self._spec(OPERATOR_ROLES[node.target]))
        return model

    def _linear(self, node: fx.Node) -> None:
        role = self.roles.get(module_path(node).rpartition(".")[2], "mlp")
        inputs = {node.args[0]: self._spec("norm_out"), node.args[1]: self.weight}
        self._annotate(node, inputs, self._spec(role))

    @staticmethod
    def _annotate(node: fx.Node, inputs: dict[Any, QuantizationSpec], output: QuantizationSpec) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )

    def validate(self, model: fx.GraphModule) -> None: ...


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
        _round_biases(converted)
    return converted


def _round_biases(graph: fx.GraphModule) -> None:
    """Biases become multiples of scale(input) * scale(weight), as integer kernels round them anyway: now all runtimes
    add the same number. A linear that is called with several input scales has a bias for each call."""
    for index, node in enumerate(graph.graph.find_nodes(op="call_function", target=aten.linear.default)):
        x, weight, bias = node.args
        step = attrgetter(weight.args[1].target)(graph).double() * x.args[1]
        value = attrgetter(bias.target)(graph)
        name = f"rounded_bias_{index}"
        graph.register_buffer(name, ((value.double() / step).round() * step).to(value.dtype))
        with graph.graph.inserting_before(node):
            node.replace_input_with(bias, graph.graph.get_attr(name))
    graph.graph.eliminate_dead_code()
    graph.recompile()
