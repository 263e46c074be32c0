"""Quantise/dequantise modules that replace edges and linears in the frozen program.

They use PyTorch's `quantized_decomposed` operators, whose reference meaning is
q = clamp(round_half_even(x * (1 / scale)) + zero_point), x' = (q - zero_point) * scale, in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.models.decoder import Embedding
from mobileicsa.models.edge import Edge
from mobileicsa.models.layers import Linear
from mobileicsa.models.product import linear

INTEGER_DTYPES = {4: torch.int8, 8: torch.int8, 16: torch.int16, 32: torch.int32}

_ops = torch.ops.quantized_decomposed


class Quantize(nn.Module):
    """Real values -> integers. A module of its own so that exported nodes carry the edge's path."""

    def __init__(self, encoding: TensorEncoding) -> None:
        super().__init__()
        self.encoding = encoding
        self.arguments = (
            encoding.scale[0],
            encoding.zero_point[0],
            encoding.qmin,
            encoding.qmax,
            INTEGER_DTYPES[encoding.bits],
        )

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = _ops.quantize_per_tensor(x, *self.arguments)
        return q


class Dequantize(Quantize):
    """Integers -> real values."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _ops.dequantize_per_tensor(x, *self.arguments)
        return y


class QdqEdge(Edge):
    """Edge with a per-tensor encoding: `store` gives integers, `load` real values."""

    def __init__(self, edge: Edge, encoding: TensorEncoding) -> None:
        super().__init__(edge.role, edge.fixed)
        self.encoding = encoding
        self.quantize = Quantize(encoding)
        self.dequantize = Dequantize(encoding)
        # Set by the simulator only: rounding without integer tensors, and float64 from here to the next edge, so
        # that the order of a sum or another library's exp cannot decide how a value is rounded there.
        self.eager = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.eager:
            return self.load(self.store(x))
        e = self.encoding
        scale, zero = e.scale[0], e.zero_point[0]
        q = (x.to(torch.float32) * (1.0 / scale)).round_().add_(zero).clamp_(e.qmin, e.qmax)
        return q.sub_(zero).mul_(scale).to(torch.float64)

    def store(self, x: Tensor) -> Tensor:
        q: Tensor = self.quantize(x.to(torch.float32) if self.eager else x)
        return q

    def load(self, x: Tensor) -> Tensor:
        y: Tensor = self.dequantize(x)
        return y.to(torch.float64) if self.eager else y


class QuantLinear(Linear):
    """Linear whose weight is integers (out, in) int8 with one scale per output channel."""

    scale: Tensor
    zero_point: Tensor
    bias_codes: Tensor

    def __init__(self, linear: Linear, integers: Tensor, scale: Tensor, encoding: WeightEncoding) -> None:
        nn.Module.__init__(self)
        self.has_out = linear.has_out
        if linear.has_out:
            self.out = linear.out
        self.bias = linear.bias
        self.encoding = encoding
        self.register_buffer("weight", integers)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=torch.int64))
        self.bias_scale: Tensor | None
        self.register_buffer("bias_scale", None)
        self.exact: ExactProduct | None = None  # set by the simulator only, never part of an exported program
        self.lora: nn.Module | None = None  # an adapter's update (see program/adapters.py)

    def effective_weight(self) -> Tensor:
        w: Tensor = _ops.dequantize_per_channel(
            self.weight, self.scale, self.zero_point, 0, self.encoding.qmin, self.encoding.qmax, torch.int8
        )
        return w

    def round_bias(self, input_scale: float, *, integers: bool) -> None:
        """Round the bias to the grid of the sum, scale(input) * scale(weight), and keep its `integers` if wanted.

        Integer kernels add it to the sum as integers and would round it there; now every runtime adds the same number.
        """
        if self.bias is None:
            return
        step = (self.scale * torch.tensor(input_scale)).to(torch.float64)
        codes = (self.bias.to(torch.float64) / step).round()
        if integers:
            limits = torch.iinfo(torch.int32)
            self.register_buffer("bias_codes", codes.clamp(limits.min, limits.max).to(torch.int32))
            self.bias_scale = step.to(torch.float32)
        self.bias = nn.Parameter((codes * step).to(torch.float32), requires_grad=False)

    def effective_bias(self) -> Tensor | None:
        if self.bias_scale is None:
            return self.bias
        limits = torch.iinfo(torch.int32)
        bias: Tensor = _ops.dequantize_per_channel(
            self.bias_codes, self.bias_scale, self.zero_point, 0, limits.min, limits.max, torch.int32
        )
        return bias

    def forward(self, x: Tensor) -> Tensor:
        bias = self.effective_bias()
        if self.exact is None:
            y = linear(x, self.effective_weight(), bias)
        else:
            y = self.exact.multiply(x)
            y = y if bias is None else y + bias
        if self.lora is not None:
            y = self.lora(x, y)
        return self.out(y) if self.has_out else y


class ExactProduct:
    """sum_k (x_k - z)(w_k) as an integer, times scale(x) * scale(w): what integer kernels compute.

    A float sum of dequantised products rounds at every addition, in an order of its own; this one rounds once.
    Integers are carried in float32, exact below 2**24, which sums of 8-bit products reach only at |x w| far above
    what real layers have (then the result is as inexact as a float sum's).
    """

    def __init__(self, linear: QuantLinear, input_scale: float) -> None:
        self.input_scale = input_scale
        self.integers = linear.weight.to(torch.float32)
        self.scale = linear.scale * torch.tensor(input_scale, dtype=torch.float32)

    def multiply(self, x: Tensor) -> Tensor:
        """x (..., in) are real values on the grid of the input's edge; returns real values (..., out)."""
        integers = torch.round(x.to(torch.float32) / self.input_scale)
        return (linear(integers, self.integers) * self.scale).to(torch.float64)


class QuantEmbedding(Embedding):
    """Embedding whose table is integers (vocab, hidden) int8 with one scale per row.

    In a primitive program the scales (with the family's factor on embeddings) are integers of `row_scales` too.
    """

    row_codes: Tensor

    def __init__(self, embedding: Embedding, integers: Tensor, scale: Tensor, encoding: WeightEncoding) -> None:
        nn.Module.__init__(self)
        self.encoding = encoding
        self.scale = embedding.scale
        self.out, self.codes, self.row_scales = embedding.out, embedding.codes, embedding.row_scales
        self.register_buffer("weight", integers)
        self.row_scale: Tensor
        self.register_buffer("row_scale", scale[:, None].clone())
        if isinstance(self.row_scales, QdqEdge):
            self.register_buffer("row_codes", self.row_scales.store(self.row_scale * self.scale))
            self.scale = 1.0

    def rows(self, ids: Tensor) -> Tensor:
        if isinstance(self.row_scales, QdqEdge):
            codes = self.codes.load(F.embedding(ids, self.weight))
            return codes * self.row_scales.load(F.embedding(ids, self.row_codes))
        return F.embedding(ids, self.weight).to(torch.float32) * F.embedding(ids, self.row_scale)
