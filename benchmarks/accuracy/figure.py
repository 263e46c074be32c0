"""The figure of the accuracy benchmark: what each recipe and peer costs in perplexity, by scheme."""

from __future__ import annotations

from typing import Any

from benchmarks.svg import pyplot, svg_text

OURS, OTHERS = "#d9622b", "#b9bec6"
OUR_RECIPES = ("rotated", "learned")
LIMIT = 2.5  # a bar above this is cut and says so


def draw(result: dict[str, Any]) -> str:
    """SVG text: one panel a scheme, bars of perplexity over float on WikiText-2, the second text as a dot."""
    schemes = sorted({row["scheme"] for row in result["rows"]}, reverse=True)
    figure, panels = pyplot().subplots(1, len(schemes), figsize=(10, 3.8), squeeze=False, sharey=True)
    for axes, scheme in zip(panels[0], schemes, strict=True):
        bars = [
            (label(row), row["texts"], row["recipe"] in OUR_RECIPES)
            for row in result["rows"]
            if row["scheme"] == scheme
        ]
        bars += [(peer["name"], peer["texts"], False) for peer in result["peers"] if peer["scheme"] == scheme]
        _panel(axes, bars)
        axes.set_title(scheme.upper(), fontsize=10)
    entries = [*result["rows"], *result["peers"]]
    ratios = [1.0, *(min(found["ratio"], LIMIT) for entry in entries for found in entry["texts"].values())]
    bottom, top = min(ratios), max(ratios)
    panels[0][0].set_ylim(bottom - 0.05 * (top - bottom), top + 0.1 * (top - bottom))
    panels[0][0].set_ylabel("perplexity over float32 (lower is better)", fontsize=8)
    figure.suptitle(f"{result['model']}: WikiText-2 raw test (bars), Tiny Shakespeare (dots)", fontsize=10)
    return svg_text(figure)


def label(row: dict[str, Any]) -> str:
    effort = "" if row["effort"] == "default" else f" {row['effort']}"
    return f"{row['recipe']}{effort}" + (" + text" if row.get("calibration") else "")


def _panel(axes: Any, bars: list[tuple[str, dict[str, Any], bool]]) -> None:
    for index, (_, texts, ours) in enumerate(bars):
        height, dot = (min(texts[text]["ratio"], LIMIT) for text in ("wikitext2", "shakespeare"))
        axes.bar(index, height - 1.0, bottom=1.0, color=OURS if ours else OTHERS, width=0.7)
        place = (index, max(height, dot))
        axes.annotate(
            f"{texts['wikitext2']['ratio']:.3f}", place, (0, 4), textcoords="offset points", ha="center", fontsize=7
        )
        axes.plot(index, dot, "o", color="#333", markersize=3)
    axes.axhline(1.0, color="#555", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(bars)), [name for name, _, _ in bars], fontsize=7, rotation=30, ha="right")
    axes.set_xlim(-0.8, max(len(bars), 4) - 0.2)
    axes.spines[["top", "right"]].set_visible(False)
