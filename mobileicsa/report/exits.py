"""The figure of an early-exit artifact: accuracy against mean MACs, and which exits are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobileicsa.report.figures import COLORS, INK, drawing


def exits_figure(report: Mapping[str, Any]) -> str:
    """SVG of the `curves` of report.json: one line for float and for integer, a dot a threshold; below, the exits that
    integer stages take at each threshold."""
    curves, thresholds = report["curves"], report["thresholds"]
    with drawing("exits", 7, 6.4, rows=[2, 1]) as (_, (accuracy, taken), svg):
        for index, (name, rows) in enumerate(curves.items()):
            points = sorted((row["mean_macs"], row["accuracy"]) for row in rows)
            accuracy.plot(*zip(*points, strict=True), color=COLORS[index], marker="o", markersize=3, label=name)
        accuracy.set_xlabel("mean multiply-accumulates a sample")
        accuracy.set_ylabel("accuracy")
        accuracy.legend(frameon=False)
        shares = list(zip(*(row["taken"] for row in curves["integer"]), strict=True))
        labels = [f"exit {exit}" for exit in range(1, len(shares) + 1)]
        taken.stackplot(thresholds, *shares, labels=labels)
        taken.set_xlabel("threshold")
        taken.set_ylabel("share of samples")
        taken.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for axis in (accuracy, taken):
            axis.grid(alpha=0.12, linewidth=0.6, color=INK)
    return svg[0] + "\n"
