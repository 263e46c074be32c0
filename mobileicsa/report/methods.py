"""The figure of a method's result: one panel a metric, or a line where a metric is given at several points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mobileicsa.report.figures import COLORS, INK, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 6
MARKERS = "osD^vPX*"
# accuracy_exit_1, accuracy_exit_2, ... are one metric at several points.
_POINT = re.compile(r"(.+)_(\d+)")


def result_figure(result: Mapping[str, Any]) -> str:
    """SVG of result.json's document: means, 95 % intervals, seeds as faint dots; the method first."""
    contenders = {result["method"]: result["metrics"], **result["baselines"]}
    panels = _panels(result["metrics"])
    with drawing("result", 9, 2.2 * len(panels) + 0.4, rows=[1] * len(panels)) as (figure, axes, svg):
        for axis, (title, points) in zip([axes] if len(panels) == 1 else axes, panels.items(), strict=True):
            (_lines if len(points) > 1 else _dots)(axis, points, contenders)
            axis.set_title(title.replace("_", " "), loc="left", fontsize=9)
            axis.grid(alpha=0.12, linewidth=0.6, color=INK)
        handles, labels = next(((h, n) for h, n in (a.get_legend_handles_labels() for a in figure.axes) if h), ([], []))
        if handles:
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return svg[0] + "\n"


def _panels(metrics: Mapping[str, Any]) -> dict[str, list[tuple[float, str]]]:
    """Title to (point, metric name); the metrics that are no series have one point."""
    panels: dict[str, list[tuple[float, str]]] = {}
    for name in metrics:
        match = _POINT.fullmatch(name)
        title, point = (match[1], float(match[2])) if match else (name, 0.0)
        panels.setdefault(title, []).append((point, name))
    return {title: sorted(points) for title, points in list(panels.items())[:MAX_PANELS]}


def _lines(axes: Axes, points: list[tuple[float, str]], contenders: Mapping[str, Any]) -> None:
    for index, (contender, metrics) in enumerate(contenders.items()):
        shown = [(x, metrics[name]) for x, name in points if name in metrics]
        axes.errorbar(
            [x for x, _ in shown],
            [estimate["mean"] for _, estimate in shown],
            yerr=[_half(estimate) for _, estimate in shown],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linestyle="-" if index < len(COLORS) else "--",
            linewidth=2.0 if index == 0 else 1.1,
            elinewidth=0.7,
            capsize=2,
            label=contender,
        )
    axes.set_xticks([x for x, _ in points])


def _dots(axes: Axes, points: list[tuple[float, str]], contenders: Mapping[str, Any]) -> None:
    name = points[0][1]
    shown = [(contender, metrics[name]) for contender, metrics in contenders.items() if name in metrics]
    for row, (_, estimate) in enumerate(shown):
        color = COLORS[row % len(COLORS)]
        axes.scatter(estimate["per_seed"], [row] * len(estimate["per_seed"]), color=color, alpha=0.3, s=10)
        axes.errorbar(
            [estimate["mean"]], [row], xerr=[_half(estimate)], color=color, marker="o", markersize=5, capsize=3
        )
    axes.set_yticks(range(len(shown)), [contender for contender, _ in shown])
    axes.invert_yaxis()


def _half(estimate: Mapping[str, Any]) -> float:
    return 0.0 if estimate["ci"] is None else (estimate["ci"][1] - estimate["ci"][0]) / 2
