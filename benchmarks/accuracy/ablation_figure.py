"""The figure of the ablation: perplexity over float of every variant, its group's whole recipe as a line."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.variants import MOBILEQUANT, OURS
from benchmarks.svg import pyplot, svg_text

WHOLE, PART = "#d9622b", "#b9bec6"


def draw(result: dict[str, Any]) -> str:
    """SVG text: panels for MobileQuant's parts and ours; bars of the mean ratio over both texts."""
    by_name = {row["name"]: row for row in result["rows"]}
    groups = (("MobileQuant's parts", MOBILEQUANT), ("our parts", OURS))
    heights = [len(variants) for _, variants in groups]
    figure, panels = pyplot().subplots(len(groups), 1, figsize=(8, 6.8), gridspec_kw={"height_ratios": heights})
    for axes, (title, variants) in zip(panels, groups, strict=True):
        ratios = [by_name[variant.name]["ratio"] for variant in variants]
        names = [variant.name for variant in variants]
        axes.barh(names, [ratio - 1 for ratio in ratios], left=1, color=[WHOLE] + [PART] * (len(names) - 1))
        for place, ratio in enumerate(ratios):
            axes.annotate(f" {ratio:.3f}", (ratio, place), va="center", fontsize=7)
        axes.axvline(ratios[0], color=WHOLE, linewidth=0.8, linestyle="--")
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.tick_params(labelsize=7)
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("perplexity over float32, geometric mean of both texts (lower is better)", fontsize=8)
    figure.suptitle(f"{result['model']}, W4A8: single parts off", fontsize=10)
    return svg_text(figure)
