"""The figures of an early-exit artifact: accuracy against mean MACs and latency, and which exits are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mobileicsa.report.figures import COLORS, INK, drawing
from mobileicsa.report.words import backend_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", "--", ":", "-.")
MILLION = 1e6
MACS_LABEL = "mean multiply-accumulates a sample, millions"


def exits_figure(report: Mapping[str, Any]) -> str:
    """SVG of the `curves` of report.json: one line for float and for integer, a dot a threshold; below, the exits that
    integer stages take at each threshold."""
    curves, thresholds = report["curves"], report["thresholds"]
    with drawing("exits", 7, 6.4, rows=[2, 1]) as (_, (accuracy, taken), svg):
        for color, (name, rows) in zip(COLORS, curves.items(), strict=False):
            _line(accuracy, rows, "mean_macs", MILLION, color=color, label=name)
        accuracy.set_xlabel(MACS_LABEL)
        _accuracy_axis(accuracy)
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
    """SVG of the `curves` of a bench: accuracy against mean MACs and against measured milliseconds. Accuracy is that of
    the simulator, or of the float model."""
    with drawing("exits-latency", 9, 3.6, columns=2) as (_, axes, svg):
        plot_curves(axes, curves)
    return svg[0] + "\n"


def plot_curves(axes: Sequence[Axes], curves: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> None:
    """Draw {back end: {kind: points}} into two axes that share accuracy: against `mean_macs`, a line a kind, which is
    the first back end's; against `mean_ms`, a line a kind (by colour) on each back end (by dash)."""
    from matplotlib.lines import Line2D

    by_macs, by_time = axes
    first = {kind: rows for kinds in [*curves.values()][::-1] for kind, rows in kinds.items()}
    colors = dict(zip(first, COLORS, strict=False))
    for kind, rows in first.items():
        _line(by_macs, rows, "mean_macs", MILLION, color=colors[kind], label=kind)
    for dash, kinds in zip(DASHES, curves.values(), strict=False):
        for kind, rows in kinds.items():
            _line(by_time, rows, "mean_ms", 1.0, color=colors[kind], linestyle=dash)
    runtimes = [
        Line2D([], [], color=INK, linestyle=dash, label=backend_name(name))
        for dash, name in zip(DASHES, curves, strict=False)
    ]
    by_macs.legend(frameon=False)
    by_time.legend(handles=runtimes, frameon=False)
    by_macs.set_xlabel(MACS_LABEL)
    by_time.set_xlabel("mean milliseconds a sample")
    for axis in axes:
        axis.set_xlim(left=0)
    _accuracy_axis(by_macs)
    _ruled(axes)


def _line(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, unit: float, **style: Any) -> None:
    points = sorted((row[key] / unit, row["accuracy"]) for row in rows)
    axis.plot(*zip(*points, strict=True), marker="o", markersize=3, **style)


def _accuracy_axis(axis: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_ylabel("accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _ruled(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.grid(alpha=0.12, linewidth=0.6, color=INK)
