"""The encodings that PT2E gives a graph's tensors: of ranges that it sees, or those of a plan.

Ranges become encodings by `core.encoding`, the same functions that a decoder's plan is made with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationSpec, QuantizationSpecBase

from mobileicsa.core.encoding import TensorEncoding, activation, symmetric
from mobileicsa.core.errors import SchemeError
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.models.layers import SOFTMAX_FLOOR

aten = torch.ops.aten
DTYPES = {8: torch.int8, 16: torch.int16}
CLIPS = tuple(1.0 - 0.05 * step for step in range(11))


class Specs(Protocol):
    """What each annotated tensor of a graph is quantised by."""

    def tensor(self, node: fx.Node, role: str) -> QuantizationSpecBase:
        """What a node gives, or a linear reads of it."""
        ...

    def weight(self, linear: fx.Node) -> QuantizationSpecBase: ...

    def constant(self) -> QuantizationSpecBase:
        """One of the graph's own: its values are its range."""
        ...


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


class PerChannelGivenScales(PerChannelMinMaxObserver):  # type: ignore[misc]
    """Scales (out,) known beforehand."""

    def __init__(self, *, given: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self.given, torch.zeros_like(self.given, dtype=torch.int64)


class SchemeSpecs:
    """A scheme's bits for each role, ranges as they are seen."""

    def __init__(self, scheme: QuantScheme) -> None:
        self.scheme = scheme
        self._specs: dict[str, QuantizationSpec] = {}
        self._weight = _weight_spec(scheme.weight_bits, PerChannelWeightObserver.with_args(bits=scheme.weight_bits))

    def tensor(self, node: fx.Node, role: str) -> QuantizationSpecBase:
        known = fixed_range(node)
        if known is None:
            return self._observed(role)
        return _fixed(activation(*known, self.scheme.bits(role), self.scheme.mantissa_bits(role)))

    def weight(self, linear: fx.Node) -> QuantizationSpecBase:
        return self._weight

    def constant(self) -> QuantizationSpecBase:
        return self._observed("constant")

    def _observed(self, role: str) -> QuantizationSpec:
        """The same object each time: by it PT2E knows that two readers of a tensor want the same."""
        if role not in self._specs:
            bits, mantissa_bits = self.scheme.bits(role), self.scheme.mantissa_bits(role)
            self._specs[role] = QuantizationSpec(
                dtype=DTYPES[bits],
                quant_min=-(2 ** (bits - 1)),
                quant_max=2 ** (bits - 1) - 1,
                qscheme=torch.per_tensor_affine,
                is_dynamic=False,
                observer_or_fake_quant_ctr=RangeObserver.with_args(bits=bits, mantissa_bits=mantissa_bits),
            )
        return self._specs[role]


class PlannedSpecs:
    """Encodings made before: `edges` by the node's name, `scales` (out,) of weights by `name_of` their linear."""

    def __init__(
        self,
        scheme: QuantScheme,
        edges: Mapping[str, TensorEncoding],
        scales: Mapping[str, Tensor],
        name_of: Callable[[fx.Node], str],
    ) -> None:
        self.bits, self.edges, self.scales, self.name_of = scheme.weight_bits, edges, scales, name_of
        self._constant = SchemeSpecs(scheme).constant()

    def tensor(self, node: fx.Node, role: str) -> QuantizationSpecBase:
        return _fixed(_planned(self.edges, node.name))

    def weight(self, linear: fx.Node) -> QuantizationSpecBase:
        scales = _planned(self.scales, self.name_of(linear))
        return _weight_spec(self.bits, PerChannelGivenScales.with_args(given=scales))

    def constant(self) -> QuantizationSpecBase:
        return self._constant


def _planned(table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        raise SchemeError(f"the plan has no encoding of {name}", hint="quantise the model again with this version")
    return table[name]


def fixed_range(node: fx.Node) -> tuple[float, float] | None:
    """The range of what a softmax that is taken apart computes, known without looking."""
    if node.target is aten.exp.default:
        return 0.0, 1.0
    if any(user.target is aten.exp.default for user in node.users):
        return SOFTMAX_FLOOR, 0.0
    if node.target is aten.reciprocal.default and node.all_input_nodes[0].target is aten.sum.dim_IntList:
        return 0.0, 1.0  # one of the summed powers is 1
    return None


def _fixed(encoding: TensorEncoding) -> FixedQParamsQuantizationSpec:
    return FixedQParamsQuantizationSpec(
        dtype=DTYPES[encoding.bits],
        scale=encoding.scale[0],
        zero_point=encoding.zero_point[0],
        quant_min=encoding.qmin,
        quant_max=encoding.qmax,
        qscheme=torch.per_tensor_affine,
    )


def _weight_spec(bits: int, observer: Any) -> QuantizationSpec:
    limit = 2 ** (bits - 1) - 1
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-limit,
        quant_max=limit,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=observer,
    )
