"""The figures of an early-exit artifact: accuracy against mean MACs and latency, and which exits are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mobileicsa.report.figures import COLORS, INK, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = {"integer": "-", "float32": "--"}


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
        _ruled((accuracy, taken))
    return svg[0] + "\n"


def latency_figure(curves: Mapping[str, Any]) -> str:
    """SVG of the `curves` of a bench: accuracy against measured milliseconds and against MACs, a line for each back
    end, dashed in float32. Accuracy is that of the simulator, or of the float model."""
    with drawing("exits-latency", 7, 6.4, rows=[1, 1]) as (_, axes, svg):
        for axis, key, words in zip(
            axes,
            ("mean_ms", "mean_macs"),
            ("mean milliseconds a sample", "mean multiply-accumulates a sample"),
            strict=True,
        ):
            for color, (backend, kinds) in zip(COLORS, curves.items(), strict=False):
                for kind, rows in kinds.items():
                    points = sorted((row[key], row["accuracy"]) for row in rows)
                    axis.plot(
                        *zip(*points, strict=True),
                        DASHES[kind],
                        color=color,
                        marker="o",
                        markersize=3,
                        label=f"{backend}, {kind}",
                    )
            axis.set_xlabel(words)
            axis.set_ylabel("accuracy")
        axes[0].legend(frameon=False, fontsize=8)
        _ruled(axes)
    return svg[0] + "\n"


def _ruled(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.grid(alpha=0.12, linewidth=0.6, color=INK)
