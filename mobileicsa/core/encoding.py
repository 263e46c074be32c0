"""`TensorEncoding`: how the integers of one tensor map to real numbers."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobileicsa.core.errors import SchemeError

# The smallest scale: below the softmax output's 1/65535 and far above float32's subnormals.
MIN_SCALE = 1e-9
FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True, kw_only=True)
class TensorEncoding:
    """Affine encoding `real = scale * (integer - zero_point)` with signed two's-complement integers.

    Invariants:
    - `bits` is 4, 8, 16 or 32, integers lie in [qmin, qmax] (narrow: qmin is -(2**(bits-1) - 1));
    - `scale` holds one value, or one per slice along `axis`; every scale is finite and > 0 (those made by the
      functions below are float32 values, as every runtime stores them);
    - `zero_point` has the length of `scale`, each inside [qmin, qmax]; zero is exactly representable;
    - symmetric means every zero point is 0.
    """

    bits: int
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16, 32):
            raise SchemeError(f"encoding: {self.bits} bits is not one of 4, 8, 16, 32")
        if not self.scale or len(self.scale) != len(self.zero_point):
            raise SchemeError("encoding: scale and zero_point must have the same length, at least 1")
        if self.axis is None and len(self.scale) != 1:
            raise SchemeError("encoding: several scales need an axis")
        if not all(math.isfinite(s) and s > 0 for s in self.scale):
            raise SchemeError("encoding: every scale must be finite and above 0")
        if not all(self.qmin <= z <= self.qmax for z in self.zero_point):
            raise SchemeError(f"encoding: zero points must lie in [{self.qmin}, {self.qmax}]")

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) + (1 if self.narrow else 0)

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def symmetric(self) -> bool:
        return not any(self.zero_point)

    @property
    def per_tensor(self) -> bool:
        return self.axis is None

    def real_range(self) -> tuple[float, float]:
        """Smallest and largest real number of a per-tensor encoding."""
        return (
            self.scale[0] * (self.qmin - self.zero_point[0]),
            self.scale[0] * (self.qmax - self.zero_point[0]),
        )

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"bits": self.bits, "scale": list(self.scale), "zero_point": list(self.zero_point)}
        if self.axis is not None:
            data["axis"] = self.axis
        if self.narrow:
            data["narrow"] = True
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorEncoding:
        try:
            return cls(
                bits=int(data["bits"]),
                scale=tuple(float(s) for s in data["scale"]),
                zero_point=tuple(int(z) for z in data["zero_point"]),
                axis=None if data.get("axis") is None else int(data["axis"]),
                narrow=bool(data.get("narrow", False)),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise SchemeError(f"encoding: malformed entry {data!r}: {error}") from error


def activation(low: float, high: float, bits: int, mantissa_bits: int | None = None) -> TensorEncoding:
    """Per-tensor encoding whose range holds [low, high] and zero.

    16 bits are symmetric, for integer-only compilers know no others (TOSA's RESCALE, QNN's SFIXED_POINT_16) and a bit
    less does not matter there; fewer bits use all codes for the range. A constant tensor (low == high == 0) gets scale
    1, never 0/0. `mantissa_bits` rounds the scale up to a short one (0: a power of two): see `shorten`.
    """
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise SchemeError(f"encoding: range [{low}, {high}] is not finite")
    scale = max(low / qmin, high / qmax) if bits == 16 else (high - low) / (qmax - qmin)
    scale = _float32(max(scale, MIN_SCALE) if high > low else 1.0)
    if mantissa_bits is not None:
        scale = _float32(shorten(scale, mantissa_bits))
    zero = 0 if bits == 16 else min(max(round(qmin - low / scale), qmin), qmax)
    return TensorEncoding(bits=bits, scale=(scale,), zero_point=(zero,))


def symmetric(max_abs: Sequence[float], bits: int, *, axis: int | None = None, narrow: bool = True) -> TensorEncoding:
    """Zero-point-0 encoding from the largest magnitude of each slice (an all-zero slice gets scale 1)."""
    qmax = 2 ** (bits - 1) - 1
    scales = tuple(_float32(max(float(m) / qmax, MIN_SCALE)) if m != 0 else 1.0 for m in max_abs)
    return TensorEncoding(bits=bits, scale=scales, zero_point=(0,) * len(scales), axis=axis, narrow=narrow)


def shorten(scale: float, mantissa_bits: int) -> float:
    """The least number >= scale whose mantissa has `mantissa_bits` bits after the leading one.

    Integers times a short scale, and sums of products of two of them, are exact in float32. Then it no longer
    matters in which order a runtime sums and scales: runtimes agree on the integers. Whether it divides by a scale or
    multiplies by its inverse matters at exact ties only, for a third of the 7-bit mantissas.
    """
    mantissa, exponent = math.frexp(scale)
    steps = 2 ** (mantissa_bits + 1)
    return math.ldexp(math.ceil(mantissa * steps) / steps, exponent)


def _float32(value: float) -> float:
    """The nearest float32: no runtime keeps a scale in more, so a plan with more would mean another grid."""
    if not value <= FLOAT32_MAX:
        raise SchemeError(f"encoding: scale {value} does not fit float32")
    single: float = struct.unpack("f", struct.pack("f", value))[0]
    return single
