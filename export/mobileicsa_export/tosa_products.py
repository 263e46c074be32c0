"""Matrix products: 8-bit factors as they are, a 16-bit factor as its two bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.tosa_arithmetic import Arithmetic
from mobileicsa_export.tosa_graph import Tensor
from mobileicsa_export.tosa_values import Coded, Constant, Sum, Value

# The program may hold the product of the two scales in float32.
BIAS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Byte:
    """weight * (tensor - zero), INT8."""

    tensor: Tensor
    zero: int
    weight: int

    @property
    def bound(self) -> int:
        return max(127 - self.zero, self.zero + 128)


class Products:
    """Linear layers and products of two activations."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic, self.graph = arithmetic, arithmetic.graph
        self._bytes: dict[tuple[str, int], list[Byte]] = {}

    def linear(self, x: Value, weight: Constant, bias: Constant | None, where: str) -> Sum:
        """x W^T + b as a 1x1 convolution with one scale per output channel."""
        if not isinstance(x, Coded):
            raise Unsupported(where, "a linear's input is not quantised")
        codes, scale = weight.grid(where), np.asarray(weight.scale)
        out, inner = codes.shape
        if weight.bits == 4 and codes.min() < -7:
            raise Unsupported(where, "a 4-bit weight has the code -8, TOSA's INT4 ends at -7")
        dtype = "INT4" if weight.bits == 4 else "INT8"
        kernel = self.graph.constant(codes.reshape(out, 1, 1, inner), dtype)
        added = np.zeros(out, np.int64) if bias is None else bias.grid(where)
        if bias is not None and not np.allclose(bias.scale, x.scale * scale, rtol=BIAS_TOLERANCE, atol=0.0):
            raise Unsupported(where, "a bias is not on the grid of its product: input scale times weight scale")
        row_sums = np.abs(codes).sum(axis=1)
        parts = []
        for byte in self._split(x):
            first = added if byte.weight == 1 else np.zeros(out, np.int64)
            rows = math.prod(x.tensor.shape[:-1])
            y = self.graph.operator(
                "CONV2D",
                [
                    self.graph.reshape(byte.tensor, (1, 1, rows, inner)),
                    kernel,
                    self.graph.constant(first, "INT32"),
                    self.graph.constant([byte.zero], "INT8"),
                    self.graph.constant([0], dtype),
                ],
                (1, 1, rows, out),
                "INT32",
                pad=[0, 0, 0, 0],
                stride=[1, 1],
                dilation=[1, 1],
                local_bound=False,
                acc_type=self.graph.enum("DType", "INT32"),
            )
            y = self.graph.reshape(y, (*x.tensor.shape[:-1], out))
            bound = int((byte.bound * row_sums + np.abs(first)).max())
            parts.append(Sum(y, byte.weight * x.scale * scale, bound))
        return self._together(parts, where)

    def matmul(self, a: Value, b: Value, where: str) -> Sum:
        """(..., M, K) x (..., K, N) with equal leading dimensions."""
        if not isinstance(a, Coded) or not isinstance(b, Coded):
            raise Unsupported(where, "a matrix product's factor is not quantised")
        *batch, rows, inner = a.tensor.shape
        columns = b.tensor.shape[-1]
        count = math.prod(batch)
        parts = []
        for left in self._split(a):
            for right in self._split(b):
                y = self.graph.operator(
                    "MATMUL",
                    [
                        self.graph.reshape(left.tensor, (count, rows, inner)),
                        self.graph.reshape(right.tensor, (count, inner, columns)),
                        self.graph.constant([left.zero], "INT8"),
                        self.graph.constant([right.zero], "INT8"),
                    ],
                    (count, rows, columns),
                    "INT32",
                )
                y = self.graph.reshape(y, (*batch, rows, columns))
                scale = left.weight * right.weight * a.scale * b.scale
                parts.append(Sum(y, scale, left.bound * right.bound * inner))
        return self._together(parts, where)

    def _together(self, parts: list[Sum], where: str) -> Sum:
        total = parts[0]
        for part in parts[1:]:
            total = self.arithmetic.add(total, part, where)
        return total

    def _split(self, x: Coded) -> list[Byte]:
        """x as 8-bit tensors; low byte and high byte of 16 bits, the zero point split likewise."""
        if x.tensor.dtype == "INT8":
            return [Byte(x.tensor, x.zero, 1)]
        key = (x.tensor.name, x.zero)
        if key not in self._bytes:
            wide = self.graph.rescale(x.tensor, 1.0, "INT32")
            one = (1,) * len(wide.shape)
            shift, mask = (self.graph.constant(np.full(one, n), "INT32") for n in (8, 255))
            high = self.graph.operator("ARITHMETIC_RIGHT_SHIFT", [wide, shift], wide.shape, "INT32", round=False)
            low = self.graph.binary("BITWISE_AND", wide, mask)
            self._bytes[key] = [
                Byte(self.graph.rescale(low, 1.0, "INT8", zero_out=-128), x.zero % 256 - 128, 1),
                Byte(self.graph.rescale(high, 1.0, "INT8"), x.zero // 256, 256),
            ]
        return self._bytes[key]
