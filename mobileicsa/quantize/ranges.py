"""Activation ranges: from what an edge saw (or from what is known of it) to its encoding."""

from __future__ import annotations

import math
from typing import Literal

from mobileicsa.calibrate.statistics import EdgeStatistics, ObservedEdge, fake_quantize
from mobileicsa.core.encoding import TensorEncoding, asymmetric
from mobileicsa.core.scheme import QuantScheme

MSE_RATIOS = tuple(1.0 - 0.04 * i for i in range(13))
# Unseen text may reach a little further than the sample; a 16-bit edge can pay for it, an 8-bit one cannot.
HEADROOM_A16 = 1.25


def encode_edge(edge: ObservedEdge, scheme: QuantScheme, ranges: Literal["minmax", "mse"]) -> TensorEncoding:
    """Encoding of one observed edge under a scheme."""
    bits, mantissa = scheme.bits(edge.role), scheme.mantissa_bits(edge.role)
    statistics = edge.statistics
    if edge.role == "constant":
        return statistics.min_max(bits, None)
    if edge.fixed is not None:
        return asymmetric(*edge.fixed, bits, mantissa)
    if ranges == "minmax":
        return statistics.min_max(bits, mantissa)
    if bits == 16:
        return asymmetric(statistics.low * HEADROOM_A16, statistics.high * HEADROOM_A16, bits, mantissa)
    return statistics.least_error(bits, mantissa, MSE_RATIOS)


def signal_to_noise_db(statistics: EdgeStatistics, encoding: TensorEncoding) -> float:
    """SQNR in dB of the edge's sample on its grid."""
    assert statistics.sample is not None
    sample = statistics.sample.double()
    noise = float((fake_quantize(statistics.sample, encoding).double() - sample).square().mean())
    power = float(sample.square().mean())
    return 10 * math.log10(max(power, 1e-30) / max(noise, 1e-30))


def clipped_share(statistics: EdgeStatistics, encoding: TensorEncoding) -> float:
    """Share of the edge's sample that saturates: farther than half a step outside of the grid."""
    assert statistics.sample is not None
    low, high = encoding.real_range()
    half = encoding.scale[0] / 2
    outside = (statistics.sample < low - half) | (statistics.sample > high + half)
    return round(float(outside.float().mean()), 6)
