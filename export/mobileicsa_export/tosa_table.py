"""A function of one integer code as tables that TOSA interpolates, within a step of rounding it exactly.

A 16-bit TABLE has 513 entries, 128 codes apart: far too coarse for a reciprocal or a root near zero. Here a function
is a sum of tables. Each reads a stretch of the codes, 2**spacing apart, and stands still on both sides of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENTRIES = 513
FRACTION_BITS = 7  # of an interpolated result
MAX_SPACING = 7
# Of a table's own error, in steps of its entries; rounding an entry is half a step of it.
TOLERANCE = 0.75

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """Entry i is at code `start + i * 2**spacing`, codes counted from 0; it stands still before `start` and after
    the last entry that differs from its forerunner."""

    start: int
    spacing: int
    entries: NDArray[np.int16]

    def evaluate(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the integer operators compute, in units of 2**-FRACTION_BITS."""
        index = np.clip((codes - self.start) << (MAX_SPACING - self.spacing), 0, 65535)
        low, fraction = index >> FRACTION_BITS, index & (2**FRACTION_BITS - 1)
        entries = self.entries.astype(np.int64)
        return (entries[low] << FRACTION_BITS) + (entries[low + 1] - entries[low]) * fraction


@dataclass(frozen=True)
class Pieces:
    """`sum(piece) + offset`, times 2**-(FRACTION_BITS + extra_bits), is the function."""

    pieces: tuple[Piece, ...]
    offset: int
    extra_bits: int

    def evaluate(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        total = sum((piece.evaluate(codes) for piece in self.pieces), np.full(codes.shape, self.offset))
        shift = FRACTION_BITS + self.extra_bits
        return (total + (1 << (shift - 1))) >> shift


def split(values: Floats, extra_bits: int) -> Pieces:
    """`values[c]`: what code c maps to, in steps of the output and within its range; 256 or 65,536 of them."""
    wanted = values * 2**extra_bits
    last = len(values) - 1
    made: list[Piece] = []
    start, offset = 0, 0.0
    while True:
        entries, spacing, end = max((_entries(wanted, start, s) for s in range(MAX_SPACING + 1)), key=lambda e: e[2])
        middle = np.round((entries.max() + entries.min()) / 2)
        made.append(Piece(start, spacing, np.clip(entries - middle, -32768, 32767).astype(np.int16)))
        # Further tables add their first entry while they stand still.
        offset += middle - (np.round(wanted[start]) if start else 0.0)
        if end == last:
            return Pieces(tuple(made), int(offset) << FRACTION_BITS, extra_bits)
        start = end


def _entries(wanted: Floats, start: int, spacing: int) -> tuple[Floats, int, int]:
    """Entries from `start` on, the spacing, and the last code up to which they hold."""
    last = len(wanted) - 1
    nodes = start + (np.arange(ENTRIES) << spacing)
    beyond = np.maximum(nodes - last, 0)
    # The last codes may lie before a node that is no code: there the line goes on.
    further = np.minimum(beyond, 1 << spacing) * (wanted[last] - wanted[last - 1])
    entries = np.round(wanted[nodes - beyond] + further)
    codes = np.arange(start, min(start + ((ENTRIES - 1) << spacing), last + 1))
    index, fraction = (codes - start) >> spacing, (codes - start) & ((1 << spacing) - 1)
    between = entries[index] + (entries[index + 1] - entries[index]) * fraction / (1 << spacing)
    wrong = np.flatnonzero((np.abs(between - wanted[codes]) > TOLERANCE) & (fraction > 0))
    if not len(wrong) and codes[-1] == last:
        return entries, spacing, last
    # The last entry is never reached whole: past it a table would stand a fraction short of it.
    cut = min(int(index[wrong[0]]) if len(wrong) else ENTRIES - 2, ENTRIES - 2)
    entries[cut:] = entries[cut]
    return entries, spacing, start + (cut << spacing)
