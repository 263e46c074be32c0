"""What skipped back ends make of a verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def could_not_run(rows: Mapping[str, Mapping[str, Any]], asked_for: Sequence[str] | None) -> list[str]:
    """Problems: each back end that was asked for by name and skipped, or that none ran at all. `rows`: results by back
    end, with "skipped" and the reason where it did not run."""
    skipped = {name: row["skipped"] for name, row in rows.items() if "skipped" in row}
    named = [f"{name} could not run: {skipped[name]}" for name in asked_for or () if name in skipped]
    if not named and len(skipped) == len(rows):
        return ["no back end could run: " + "; ".join(skipped.values())]
    return named
