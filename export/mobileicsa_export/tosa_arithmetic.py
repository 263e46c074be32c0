"""Exact integer arithmetic on real tensors: INT32 sums and products with a scale kept beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.tosa_graph import Tensor, TosaGraph
from mobileicsa_export.tosa_ties import PRODUCT_LIMIT, common_ties, irregular_ties, tie_factor
from mobileicsa_export.tosa_values import LIMITS, Coded, Constant, Scale, Sum, Value

# What RESCALE makes stays below it.
SUM_LIMIT = 2**29 - 1
# Bits below the finer of two summands' steps that are kept where their grids do not fit each other.
GUARD_BITS = 10


class Arithmetic:
    """Real-valued operators on `graph`. `where` names the program's operator in errors."""

    def __init__(self, graph: TosaGraph) -> None:
        self.graph = graph
        self._sums: dict[tuple[str, int], Tensor] = {}

    def as_sum(self, value: Value, where: str) -> Sum:
        if isinstance(value, Sum):
            return value
        if isinstance(value, Constant):
            codes = value.grid(where)
            return Sum(self.graph.constant(codes, "INT32"), value.scale, int(np.abs(codes).max(initial=1)))
        if not isinstance(value, Coded):
            raise Unsupported(where, "reads a table's result before it is quantised")
        key = (value.tensor.name, value.zero)
        if key not in self._sums:
            self._sums[key] = self.centered(value.tensor, value.zero)
        return Sum(self._sums[key], value.scale, value.bound)

    def centered(self, x: Tensor, zero: int) -> Tensor:
        """x - zero as INT32; TOSA has zero points for 8-bit tensors only."""
        if x.dtype == "INT8":
            return self.graph.rescale(x, 1.0, "INT32", zero_in=zero)
        wide = self.graph.rescale(x, 1.0, "INT32")
        return self.shifted(wide, -zero)

    def shifted(self, x: Tensor, by: int) -> Tensor:
        if by == 0:
            return x
        return self.graph.binary("ADD", x, self.graph.constant(np.full((1,) * len(x.shape), by), "INT32"))

    def multiply(self, a: Value, b: Value, where: str) -> Sum:
        for value, other in ((a, b), (b, a)):
            factor = _factor(value, where)
            if factor is not None:
                x = self.as_sum(other, where)
                return replace(x, scale=x.scale * factor)
        x, y = self.as_sum(a, where), self.as_sum(b, where)
        bound = x.bound * y.bound
        shift = _excess(bound, PRODUCT_LIMIT)
        tensor = self.graph.multiply(x.tensor, y.tensor, shift)
        return Sum(tensor, x.scale * y.scale * 2.0**shift, -(-bound >> shift))

    def add(self, a: Value, b: Value, where: str, *, subtract: bool = False) -> Sum:
        x, y = (self.as_sum(value, where) for value in (a, b))
        if x.per_channel != y.per_channel or x.tensor.shape[-1:] != y.tensor.shape[-1:]:
            # A channel's scale would be lost where its axis is broadcast.
            x, y = self.one_scale(x), self.one_scale(y)
        step, bound = _common_step(x, y)
        a_step, b_step = (self._at_step(part, step) for part in (x, y))
        name = "SUB" if subtract else "ADD"
        return Sum(self.graph.binary(name, a_step, b_step), step, bound)

    def at_one_step(self, values: Sequence[Value], where: str) -> list[Sum]:
        """Sums on one grid, to be joined."""
        sums = [self.one_scale(self.as_sum(value, where)) for value in values]
        largest = max(float(s.scale) * s.bound for s in sums)
        step = max(min(float(s.scale) for s in sums) * 2.0**-GUARD_BITS, largest / SUM_LIMIT)
        return [Sum(self._at_step(s, step), step, math.ceil(largest / step) + 1) for s in sums]

    def concatenate(self, values: Sequence[Value], axis: int, where: str) -> Coded | Sum:
        first = values[0]
        if isinstance(first, Coded):
            same = [v for v in values if isinstance(v, Coded) and _same_grid(v, first)]
            if len(same) == len(values):
                return replace(first, tensor=self.graph.concatenate([v.tensor for v in same], axis))
        sums = self.at_one_step(values, where)
        tensor = self.graph.concatenate([s.tensor for s in sums], axis)
        return Sum(tensor, sums[0].scale, max(s.bound for s in sums))

    def _at_step(self, x: Sum, step: Scale) -> Tensor:
        ratio = x.scale / step
        return x.tensor if np.all(ratio == 1.0) else self.graph.rescale(x.tensor, ratio, "INT32")

    def one_scale(self, x: Sum) -> Sum:
        """A sum whose channels share a scale, as moving its axes needs."""
        if not x.per_channel:
            return x
        largest = float(np.max(x.scale)) * x.bound
        step = max(float(np.min(x.scale)) * 2.0**-GUARD_BITS, largest / SUM_LIMIT)
        return Sum(self._at_step(x, step), step, math.ceil(largest / step) + 1)

    def total(self, value: Value, axis: int, where: str) -> Sum:
        x = self.as_sum(value, where)
        count = x.tensor.shape[axis]
        excess = _excess(x.bound, PRODUCT_LIMIT // count)
        if excess > 0:
            x = Sum(self.graph.rescale(x.tensor, 2.0**-excess, "INT32"), x.scale * 2.0**excess, -(-x.bound >> excess))
        return Sum(self.graph.reduce("REDUCE_SUM", x.tensor, axis), x.scale, x.bound * count)

    def quantize(self, value: Value, scale: float, zero: int, dtype: str, where: str) -> Tensor:
        if isinstance(value, Coded) and (value.scale, value.zero, value.tensor.dtype) == (scale, zero, dtype):
            return value.tensor
        x = self.as_sum(value, where)
        made = self._round(x, scale, zero, dtype)
        reach = math.ceil(x.bound * float(np.max(x.scale)) / scale) + 1
        low, high = LIMITS[dtype]
        return replace(made, limits=(max(low, zero - reach), min(high, zero + reach)))

    def _round(self, x: Sum, scale: float, zero: int, dtype: str) -> Tensor:
        """saturate(round(x / scale) + zero)."""
        ratio, tensor = x.scale / scale, x.tensor
        if float(np.max(ratio)) * x.bound >= SUM_LIMIT:
            # Each channel by its own ratio: one with a large scale must not cut the others off.
            limit = np.floor(SUM_LIMIT / 2 / np.atleast_1d(ratio))
            tensor = self._limited(tensor, np.clip(limit, 1, x.bound).astype(np.int64))
        ties = None if isinstance(x.scale, np.ndarray) else common_ties(x.scale, scale, x.bound)
        if ties is not None:
            tensor, ratio = self._as_program(tensor, ties, scale, zero, dtype)
        if dtype == "INT8" or zero == 0:
            return self.graph.rescale(tensor, ratio, dtype, zero_out=zero)
        return self.graph.rescale(self.shifted(self.graph.rescale(tensor, ratio, "INT32"), zero), 1.0, dtype)

    def _limited(self, x: Tensor, limit: NDArray[np.int64]) -> Tensor:
        """`limit`: one, or one per index of the last axis."""
        wide = limit.reshape((1,) * (len(x.shape) - 1) + (-1,))
        for name, end in (("MINIMUM", wide), ("MAXIMUM", -wide)):
            x = self.graph.binary(name, x, self.graph.constant(end, "INT32"))
        return x

    def _as_program(self, x: Tensor, ratio: Fraction, out: float, zero: int, dtype: str) -> tuple[Tensor, float]:
        """A tensor and scale for RESCALE, which rounds ties up: a hair lower where the program rounds down.

        Multiplier and shift hold a power of two exactly. For other ratios a tie is first moved a hair up.
        """

        def number(value: int) -> Tensor:
            return self.graph.constant(np.full((1,) * len(x.shape), value), "INT32")

        times, exact = tie_factor(ratio)
        scale = ratio.numerator / ratio.denominator / times
        if times != 1:
            x = self.graph.multiply(x, number(times), 0)
        if not exact:
            x = self.shifted(x, 1)
        down = None if exact or dtype != "INT8" else irregular_ties(out, zero)
        if down is not None:
            rounded = self.graph.rescale(x, scale, "INT8", zero_out=zero)
            lower = self.graph.rescale(self.table(rounded, 2 * down, "INT8"), 1.0, "INT32")
        else:
            odd = self.graph.binary("BITWISE_AND", self.graph.rescale(x, scale, "INT32"), number(1))
            lower = odd if exact else self.graph.binary("ADD", odd, odd)
        return self.graph.binary("SUB", x, lower), scale

    def table(self, x: Tensor, codes: NDArray[np.int64], dtype: str) -> Tensor:
        """codes[i] for the i-th lowest code of `x`.

        A 16-bit TABLE interpolates between entries 128 codes apart, far too coarse for a reciprocal or a root near
        zero; a GATHER has an entry for each code.
        """
        if x.dtype == dtype == "INT8":
            made = self.graph.operator("TABLE", [x, self.graph.constant(codes, "INT8")], x.shape, "INT8")
        else:
            index = self.shifted(self.graph.rescale(x, 1.0, "INT32"), -LIMITS[x.dtype][0])
            made = self.graph.reshape(self.graph.gather(codes[:, None], index, dtype), x.shape)
        return replace(made, limits=(int(codes.min()), int(codes.max())))


def _same_grid(a: Coded, b: Coded) -> bool:
    return (a.scale, a.zero, a.tensor.dtype) == (b.scale, b.zero, b.tensor.dtype)


def _factor(value: Value, where: str) -> float | None:
    """A positive one-element constant as a number: multiplying by it changes the scale alone."""
    if not isinstance(value, Constant) or value.grid(where).size != 1:
        return None
    factor = float(value.grid(where).reshape(-1)[0]) * float(np.reshape(value.scale, -1)[0])
    return factor if factor > 0 else None


def _common_step(x: Sum, y: Sum) -> tuple[Scale, int]:
    """A step for the sum of two, fine but without overflow, and the bound of the result.

    Each channel has a step of its own: a row of zeros has scale 1 and would make a shared one far too coarse.
    """
    finer = np.minimum(x.scale, y.scale)
    ratios = [np.atleast_1d(s / finer) for s in (x.scale, y.scale)]
    steps = float(np.max(ratios[0] * x.bound + ratios[1] * y.bound))
    # Powers of two fit each other: nothing is lost at the finer step.
    bits = 0 if np.all(np.frexp(np.concatenate(ratios))[0] == 0.5) else GUARD_BITS
    bits = min(bits, math.floor(math.log2(SUM_LIMIT / steps)))
    return finer * 2.0**-bits, math.ceil(steps * 2.0**bits) + 2


def _excess(bound: int, limit: int) -> int:
    """The fewest bits by which integers up to `bound` are divided to stay within `limit`."""
    return max(0, (bound - 1) // limit).bit_length()
