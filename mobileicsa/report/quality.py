"""How near to float each quantisation stage left the model: a table's rows, from report.json."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.words import DASH, number

STAGES = {
    "base": "rounded",
    "block": "learned block by block",
    "model": "learned end to end",
    "bias": "biases corrected",
}


def quality_view(rows: list[dict[str, Any]] | None, *, prefixed: bool) -> dict[str, Any] | None:
    """None for an artifact of a version that did not look; `prefixed`: it has a sink prefix, more than BOS."""
    if not rows:
        return None
    first = rows[0]
    count = f"{first['windows']} window{'' if first['windows'] == 1 else 's'}"
    held = "that neither calibration nor learning saw" if first["unseen"] else "of the calibration text"
    where = " behind the same prefix" if prefixed else ""
    return {
        "terms": (
            f"On {count} {held}; float32{where} has perplexity {number(first['float_perplexity'])} "
            "there. KL is over its 64 likeliest tokens and the rest as one. Noise is that of an edge's own rounding."
        ),
        "rows": [_row(row) for row in rows],
    }


def _row(row: dict[str, Any]) -> dict[str, Any]:
    ours, theirs = row["perplexity"], row["float_perplexity"]
    return {
        "stage": STAGES[row["stage"]],
        "kl": number(row["kl"], 4),
        "perplexity": number(ours),
        "ratio": f"{ours / theirs:.3f}×" if ours and theirs else DASH,
        "worst": [
            {"edge": worst["edge"], "noise": f"{worst['sqnr_db']:.1f} dB at {worst['bits']} bits"}
            for worst in row["worst"]
        ],
    }
