"""Activation ranges: from what an edge saw (or from what is known of it) to its encoding."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from mobileicsa.calibrate.statistics import ObservedEdge, fake_quantize
from mobileicsa.core.encoding import TensorEncoding, activation
from mobileicsa.core.scheme import QuantScheme

MSE_RATIOS = tuple(1.0 - 0.04 * i for i in range(13))
# Unseen text may reach a little further than the sample; a 16-bit edge can pay for it, an 8-bit one must be asked.
HEADROOM_A16 = 1.25


def encode_edge(
    edge: ObservedEdge, scheme: QuantScheme, ranges: Literal["minmax", "mse"], headroom: float = 1.0
) -> TensorEncoding:
    """Encoding of one observed edge under a scheme.

    An 8-bit range is widened by `headroom` (>= 1) once it is found, for massive tokens of unseen text: they clip less,
    and all other values round as much more coarsely (1.1: 0.8 dB more noise).
    """
    bits, mantissa = scheme.bits(edge.role, edge.path), scheme.mantissa_bits(edge.role, edge.path)
    statistics = edge.statistics
    if edge.role == "constant":
        return statistics.min_max(bits, None)
    if edge.fixed is not None:
        return activation(*edge.fixed, bits, mantissa)
    share = headroom if bits == 8 else 1.0
    if ranges == "minmax":
        return statistics.min_max(bits, mantissa, share)
    if bits == 16:
        return activation(statistics.low * HEADROOM_A16, statistics.high * HEADROOM_A16, bits, mantissa)
    return statistics.least_error(bits, mantissa, MSE_RATIOS, share)


def edge_facts(edge: ObservedEdge, encoding: TensorEncoding) -> dict[str, Any]:
    """One edge's row of the report."""
    return {
        "role": edge.role,
        "bits": encoding.bits,
        "low": edge.statistics.low,
        "high": edge.statistics.high,
        "sqnr_db": round(signal_to_noise_db(edge, encoding), 2),
        "clipped": clipped_share(edge, encoding),
    }


def signal_to_noise_db(edge: ObservedEdge, encoding: TensorEncoding) -> float:
    """SQNR in dB of the edge's sample on its grid."""
    values = _meant_values(edge)
    sample = values.double()
    noise = float((fake_quantize(values, encoding).double() - sample).square().mean())
    power = float(sample.square().mean())
    return decibels(power, noise)


def decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))


def clipped_share(edge: ObservedEdge, encoding: TensorEncoding) -> float:
    """Share of the edge's sample that saturates: farther than half a step outside of the grid."""
    values = _meant_values(edge)
    low, high = encoding.real_range()
    half = encoding.scale[0] / 2
    outside = (values < low - half) | (values > high + half)
    return round(float(outside.float().mean()), 6)


def _meant_values(edge: ObservedEdge) -> Tensor:
    """The edge's sample; what lies outside of a range that is known beforehand saturates by design (masked scores)."""
    assert edge.statistics.sample is not None
    return edge.statistics.sample if edge.fixed is None else edge.statistics.sample.clamp(*edge.fixed)
