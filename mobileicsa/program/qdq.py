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
        self.exact: ExactProduct | None = None  # set by the simulator only, never part of an exported program

    def effective_weight(self) -> Tensor:
        w: Tensor = _ops.dequantize_per_channel(
            self.weight, self.scale, self.zero_point, 0, self.encoding.qmin, self.encoding.qmax, torch.int8
        )
        return w

    def forward(self, x: Tensor) -> Tensor:
        if self.exact is None:
            return super().forward(x)
        y = self.exact.multiply(x)
        if self.bias is not None:
            y = y + self.bias
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
        return (F.linear(integers, self.integers) * self.scale).to(torch.float64)


class QuantEmbedding(Embedding):
    """Embedding whose table is integers (vocab, hidden) int8 with one scale per row."""

    def __init__(self, embedding: Embedding, integers: Tensor, scale: Tensor, encoding: WeightEncoding) -> None:
        nn.Module.__init__(self)
        self.encoding = encoding
        self.scale = embedding.scale
        self.out = embedding.out
        self.register_buffer("weight", integers)
        self.row_scale: Tensor
        self.register_buffer("row_scale", scale[:, None].clone())

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).to(torch.float32) * F.embedding(ids, self.row_scale)
