"""Calibration statistics: what every edge saw, enough to choose a range by error without keeping activations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mobileicsa.core.encoding import TensorEncoding, activation
from mobileicsa.core.errors import InputError
from mobileicsa.models.edge import Edge

# Values kept per edge for the error of a candidate range; extremes are exact beside them.
SAMPLE_SIZE = 1 << 16


@dataclass
class EdgeStatistics:
    """Exact `low`, `high` over all values seen, their `count`, and a strided sample (float32, 1-D)."""

    low: float = float("inf")
    high: float = float("-inf")
    count: int = 0
    sample: Tensor | None = None

    def update(self, x: Tensor, expected_updates: int, where: str = "activation") -> None:
        """`expected_updates` shares the sample evenly over the batches to come."""
        flat = x.detach().reshape(-1)
        low, high = finite_range(flat, where)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += flat.numel()
        stride = max(1, flat.numel() * expected_updates // SAMPLE_SIZE)
        # With a common divisor the walk would meet some channels of a row-major activation only.
        while math.gcd(stride, x.shape[-1] if x.dim() else 1) > 1:
            stride += 1
        taken = flat[::stride].clone()
        self.sample = taken if self.sample is None else torch.cat((self.sample, taken))

    def min_max(self, bits: int, mantissa_bits: int | None, factor: float = 1.0) -> TensorEncoding:
        """The range of all values seen, its ends `factor` times as far from 0."""
        return activation(self.low * factor, self.high * factor, bits, mantissa_bits)

    def least_error(
        self, bits: int, mantissa_bits: int | None, ratios: tuple[float, ...], headroom: float = 1.0
    ) -> TensorEncoding:
        """The shrunk range with the least mean squared error on the sample, the extremes always among it; its ends
        then `headroom` times as far from 0."""
        assert self.sample is not None
        values = torch.cat((self.sample, torch.tensor([self.low, self.high]).to(self.sample.device)))
        best, best_error = 1.0, float("inf")
        for ratio in ratios:
            error = float((fake_quantize(values, self.min_max(bits, mantissa_bits, ratio)) - values).square().mean())
            if error < best_error:
                best, best_error = ratio, error
        return self.min_max(bits, mantissa_bits, best * headroom)


def finite_range(x: Tensor, where: str) -> tuple[float, float]:
    """Smallest and largest value; InputError naming `where` for NaN or infinity."""
    low, high = (float(v) for v in torch.aminmax(x))
    # NaN fails both comparisons.
    if not (low > float("-inf") and high < float("inf")):
        raise InputError(f"calibration: {where} is NaN or infinite", hint="are the weights intact?")
    return low, high


def fake_quantize(x: Tensor, encoding: TensorEncoding) -> Tensor:
    """Round x to the grid of a per-tensor encoding (float in, float out), as the frozen program does."""
    scale, zero = encoding.scale[0], encoding.zero_point[0]
    return (torch.clamp(torch.round(x / scale) + zero, encoding.qmin, encoding.qmax) - zero) * scale


def integers_of(x: Tensor, encoding: TensorEncoding) -> Tensor:
    """int8 codes of x on the grid of an 8-bit per-tensor encoding."""
    return (torch.round(fake_quantize(x, encoding) / encoding.scale[0]) + encoding.zero_point[0]).to(torch.int8)


def values_of(integers: Tensor, encoding: TensorEncoding) -> Tensor:
    """The real values (float32) of `integers_of`."""
    return (integers.to(torch.float32) - encoding.zero_point[0]) * encoding.scale[0]


class ObservedEdge(Edge):
    """Edge that passes its tensor through and records it."""

    def __init__(self, edge: Edge, expected_updates: int, path: str = "activation") -> None:
        super().__init__(edge.role, edge.fixed)
        self.path = path
        self.statistics = EdgeStatistics()
        self.expected_updates = expected_updates

    def store(self, x: Tensor) -> Tensor:
        self.statistics.update(x, self.expected_updates, self.path)
        return x
