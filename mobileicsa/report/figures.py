"""The report's figures: one function each, from report.json's numbers to an inline SVG string.

Text and axes take the page's own colour, so that one drawing serves light and dark; the file is the same each time.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobileicsa.report.sites import Site, layer_sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Replaced by the page's text colour once drawn.
INK = "#010203"
COLORS = ("#d9622b", "#3b7dd8", "#2e9e6b", "#b04bc0", "#b8901c", "#7d8590")
RANGE_SITES = {
    "mlp.product": "down-projection input",
    "out": "residual stream",
    "attn.scores": "attention scores",
    "attn_norm.out": "q/k/v input",
    "mlp_norm.out": "gate/up input",
    "attn.out": "o-projection input",
}


def range_figure(edges: dict[str, Any]) -> str | None:
    """Largest magnitude of each layer's main edges, on a logarithmic axis."""
    sites = {site.name: site for site in layer_sites(edges)}
    shown = [(sites[name], words) for name, words in RANGE_SITES.items() if name in sites]
    if not shown:
        return None
    with drawing("ranges", 9, 3.6) as (figure, axes, result):
        ends = []
        for (site, words), color in zip(shown, COLORS, strict=False):
            height = [max(abs(e["low"]), abs(e["high"]), 1e-6) for e in site.edges]
            axes.plot(site.layers, height, color=color, linewidth=1.6, marker="o", markersize=2.6)
            ends.append((height[-1], words, color))
        axes.set_yscale("log")
        _label_ends(figure, axes, ends, shown[0][0].layers[-1])
        axes.set_xlabel("layer")
        axes.set_ylabel("largest magnitude")
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        _integer_axis(axes, shown[0][0].layers)
    return result[0]


def _label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[float, str, str]], x: int) -> None:
    """Names beside the lines' ends, moved apart where lines meet."""
    axes.margins(x=0.02)
    figure.subplots_adjust(right=0.80)
    low, high = np.log10(axes.get_ylim())
    gap = (high - low) * 0.068
    last = -np.inf
    for value, words, color in sorted(ends):
        last = max(np.log10(value), last + gap)
        axes.annotate(
            words,
            (x, 10**last),
            xytext=(9, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def sqnr_figure(edges: dict[str, Any]) -> str | None:
    """Signal-to-noise ratio of every layer's edges: sites down, layers across, one panel per width."""
    sites = [site for site in layer_sites(edges) if site.role != "internal"]
    panels = [group for bits in (8, 16) if (group := [site for site in sites if site.bits == bits])]
    if not panels:
        return None
    heights = [len(group) for group in panels]
    with drawing("sqnr", 9, 1.0 + 0.235 * sum(heights) + 0.55 * len(panels), rows=heights) as (figure, axes, result):
        for axis, group in zip(np.atleast_1d(axes), panels, strict=True):
            grid = _grid(group, "sqnr_db")
            low, high = np.nanpercentile(grid, 1), np.nanpercentile(grid, 99)
            mesh = axis.pcolormesh(grid, cmap="viridis", vmin=low, vmax=max(high, low + 1))
            _cells(axis, [site.name for site in group], grid.shape[1])
            axis.set_title(f"{group[0].bits}-bit edges", loc="left", fontsize=10)
            bar = figure.colorbar(mesh, ax=axis, pad=0.015, fraction=0.03)
            bar.set_label("dB")
            bar.outline.set_visible(False)
        np.atleast_1d(axes)[-1].set_xlabel("layer")
    return result[0]


def smoothing_figure(smoothing: dict[str, Any]) -> str | None:
    """Chosen smoothing strength of each site; an empty cell was left alone because nothing helped."""
    if not smoothing:
        return None
    names = list(dict.fromkeys(row["site"] for rows in smoothing.values() for row in rows))
    grid = np.full((len(names), len(smoothing)), np.nan)
    for column, rows in enumerate(smoothing.values()):
        for row in rows:
            if row["alpha"] is not None:
                grid[names.index(row["site"]), column] = row["alpha"]
    with drawing("smoothing", 9, 0.9 + 0.3 * len(names)) as (figure, axes, result):
        mesh = axes.pcolormesh(grid, cmap="cividis", vmin=0, vmax=1)
        _cells(axes, names, grid.shape[1])
        axes.set_xlabel("layer")
        bar = figure.colorbar(mesh, ax=axes, pad=0.015, fraction=0.03)
        bar.set_label("α")
        bar.outline.set_visible(False)
    return result[0]


def prefix_figure(trials: Sequence[dict[str, Any]], chosen: Sequence[int]) -> str | None:
    """Expected loss behind every prefix tried, by its length; the chosen one marked."""
    # The trials of older artifacts hold another measure.
    trials = [trial for trial in trials if "loss" in trial]
    if len(trials) < 2:
        return None
    with drawing("prefix", 9, 2.9) as (_, axes, result):
        lengths = [len(trial["ids"]) for trial in trials]
        axes.scatter(lengths, [trial["loss"] for trial in trials], s=14, color=COLORS[1], alpha=0.55, linewidths=0)
        for trial in trials:
            if list(trial["ids"]) == list(chosen):
                axes.scatter([len(chosen)], [trial["loss"]], s=70, facecolors="none", edgecolors=COLORS[0])
                axes.annotate(
                    "chosen", (len(chosen), trial["loss"]), xytext=(9, -3), textcoords="offset points", color=COLORS[0]
                )
        axes.set_xlabel("tokens in the prefix, BOS included")
        axes.set_ylabel("expected loss, nats a token")
        axes.set_xlim(min(lengths) - 0.4, max(lengths) + 0.7)
        axes.set_xticks(sorted(set(lengths)))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6, which="both")
    return result[0]


def _grid(sites: Sequence[Site], key: str) -> NDArray[np.float64]:
    columns = max(layer for site in sites for layer in site.layers) + 1
    grid = np.full((len(sites), columns), np.nan)
    for row, site in enumerate(sites):
        for layer, edge in zip(site.layers, site.edges, strict=True):
            if edge[key] is not None:
                grid[row, layer] = edge[key]
    return grid


def _cells(axes: Axes, names: Sequence[str], columns: int) -> None:
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.invert_yaxis()
    step = max(1, columns // 15)
    axes.set_xticks(np.arange(0, columns, step) + 0.5, [str(i) for i in range(0, columns, step)])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _integer_axis(axes: Axes, layers: Sequence[int]) -> None:
    step = max(1, len(layers) // 15)
    axes.set_xticks(list(layers)[::step])


@contextmanager
def drawing(
    name: str, width: float, height: float, rows: Sequence[int] | None = None, columns: int = 1
) -> Iterator[tuple[Figure, Any, list[str]]]:
    """A figure in the page's style; on leaving, its SVG is in the list that was handed out. `rows`: heights of panels
    above each other; `columns` beside each other share their y axis."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same drawing gives the same bytes, and no two share an id
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK
        ),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained" if rows or name != "ranges" else None)
        axes = figure.subplots(len(rows) if rows else 1, columns, sharey=columns > 1, height_ratios=rows or None)
        result: list[str] = []
        yield figure, axes, result
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    result.append(_inline(stream.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """The <svg> element alone, in the page's ink, font and width, with ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px inherit; font-family: inherit", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1))
