"""Was a text calibrated on? Told from hashes, so that nothing of a calibration text is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobileicsa.io.hashing import sha256_bytes

# Shorter lines are headings and phrases that unrelated texts share, and could be guessed from their hash.
LINE_CHARACTERS = 32
# Bottom-k sketch (Broder 1997): the smallest hashes are a fair sample of the lines, the same one in every text.
SKETCH_SIZE = 256
WARN_FROM = 0.05


def line_hashes(text: str) -> set[str]:
    """64-bit hashes (hex) of the distinct lines of at least LINE_CHARACTERS characters, outer spaces aside."""
    lines = {line.strip() for line in text.split("\n")}
    return {sha256_bytes(line.encode())[:16] for line in lines if len(line) >= LINE_CHARACTERS}


def line_sketch(text: str) -> list[str]:
    """The SKETCH_SIZE smallest line hashes, in order."""
    return sorted(line_hashes(text))[:SKETCH_SIZE]


def overlap_warning(calibration: Mapping[str, Any], text: str) -> str | None:
    """What to say of a text that is, holds, or lies in the calibration text.

    `calibration`: the report's facts of that text, of which `sha256` and `line_hashes` are used.
    """
    if calibration.get("sha256") == sha256_bytes(text.encode()):
        return "this text is the calibration text: its perplexity says nothing about other texts"
    known: list[str] = calibration.get("line_hashes") or []
    found = line_hashes(text)
    if len(known) == SKETCH_SIZE:  # nothing is known of hashes behind its last one
        found = {one for one in found if one <= known[-1]}
    shared = len(found.intersection(known)) / max(min(len(found), len(known)), 1)
    if shared < WARN_FROM:
        return None
    return (
        f"about {shared:.0%} of the lines of this text or of the calibration text are in both: "
        "its perplexity is better than that of a new text"
    )
