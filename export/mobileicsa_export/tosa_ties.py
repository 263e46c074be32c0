"""Which way the program rounds a value that lies halfway between two integers: to even, or as float32 has it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

PRODUCT_LIMIT = 2**31 - 1
# Grids that fit each other so well that one value in so many is a tie; squares meet theirs far more often.
MAX_TIE_DISTANCE = 2**16


def common_ties(scale: float, out: float, bound: int) -> Fraction | None:
    """scale / out where integers up to `bound` times it are often halfway between two."""
    ratio = Fraction(float(scale)) / Fraction(out)
    fits = tie_factor(ratio)[0] * bound <= PRODUCT_LIMIT
    return ratio if ratio.denominator % 2 == 0 and ratio.denominator <= MAX_TIE_DISTANCE and fits else None


def tie_factor(ratio: Fraction) -> tuple[int, bool]:
    """What a tensor is multiplied by before its ties are found, and whether the rest is a power of two."""
    exact = ratio.denominator & (ratio.denominator - 1) == 0
    return ratio.numerator * (1 if exact else 2), exact


def irregular_ties(out: float, zero: int) -> NDArray[np.int64] | None:
    """For each 8-bit code, lowest first, 1 where the tie just below it is rounded down; None if that is to even.

    The program multiplies by the scale's inverse in float32. For scales of 1.75 * 2**k that leaves a tie one or not as
    its own bits have it.
    """
    steps = np.arange(-128, 128) - zero
    ties = ((steps - 0.5) * out).astype(np.float32)
    down = (np.rint(ties * np.float32(1.0 / out)).astype(np.int64) < steps).astype(np.int64)
    return None if np.array_equal(down, steps % 2) else down
