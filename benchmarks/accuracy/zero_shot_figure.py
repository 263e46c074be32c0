"""The figure of the zero-shot benchmark: the tasks' mean accuracy against float, question by question, by scheme."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.figure import OTHERS, OUR_RECIPES, OURS, label
from benchmarks.svg import pyplot, svg_text

# A panel has room for as many: a bar that fills it would look like much.
LEAST_BARS = 4


def draw(result: dict[str, Any]) -> str:
    """SVG text: one panel a scheme, bars of the paired difference to float in percentage points, one standard error."""
    schemes = sorted({row["scheme"] for row in result["rows"]}, reverse=True)
    width = max(len(schemes), 1)
    figure, panels = pyplot().subplots(1, width, figsize=(10, 3.8), squeeze=False, sharey=True)
    for axes, scheme in zip(panels[0], schemes, strict=False):
        _panel(axes, [row for row in result["rows"] if row["scheme"] == scheme])
        axes.set_title(scheme.upper(), fontsize=10)
    # Room for the numbers above zero, below the titles.
    bottom, top = panels[0][0].get_ylim()
    panels[0][0].set_ylim(bottom, top + 0.12 * (top - bottom))
    panels[0][0].set_ylabel("points against float32, one standard error", fontsize=8)
    mean = result["float"]["mean"]
    figure.suptitle(
        f"{result['model']}: mean zero-shot accuracy of {len(result['float']['tasks'])} tasks, "
        f"up to {result['limit']:,} questions each; float32 {100 * mean['value']:.1f} %",
        fontsize=10,
    )
    return svg_text(figure)


def _panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    for index, row in enumerate(rows):
        points, error = 100 * row["mean"]["difference"], 100 * row["mean"]["difference_stderr"]
        color = OURS if row["recipe"] in OUR_RECIPES else OTHERS
        axes.bar(index, points, yerr=error, color=color, width=0.7, capsize=3, error_kw={"linewidth": 0.8})
        # On the far side of zero, clear of the bar and its error.
        side = 1 if points < 0 else -1
        place = (index, side * max(0.0, side * points + error))
        align = "bottom" if side > 0 else "top"
        axes.annotate(
            f"{points:+.1f}", place, (0, 2 * side), textcoords="offset points", ha="center", va=align, fontsize=7
        )
    axes.axhline(0.0, color="#555", linewidth=0.8, linestyle="--")
    axes.set_xlim(-0.6, max(len(rows), LEAST_BARS) - 0.4)
    axes.set_xticks(range(len(rows)), [label(row) for row in rows], fontsize=7, rotation=30, ha="right")
    axes.spines[["top", "right"]].set_visible(False)
