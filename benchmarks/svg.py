"""Figures of the benchmarks as SVG text whose bytes depend on nothing but their data."""

from __future__ import annotations

import io
from typing import Any


def pyplot() -> Any:
    """matplotlib's pyplot, drawing SVG with the same element names each time."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "mobileicsa"
    return plt


def svg_text(figure: Any) -> str:
    """The figure laid out, as SVG without a date; it is closed."""
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    return text.getvalue()
