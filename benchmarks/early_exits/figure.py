"""The early-exit figure: accuracy on test images against mean MACs and against mean milliseconds."""

from __future__ import annotations

from typing import Any

from benchmarks.svg import pyplot, svg_text
from mobileicsa.bench.exits import FLOAT
from mobileicsa.report.exits import MILLION, plot_curves
from mobileicsa.report.figures import INK

# Of accuracy: a point is the standard error of 2,000 images, and is not to look like much.
LEAST_SPAN = 0.1


def draw(result: dict[str, Any]) -> str:
    """SVG text: two panels that share accuracy, a dot a threshold; in the first, crosses for one exit always."""
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4.2), sharey=True)
    shown = {
        name: {kind if kind == FLOAT else kind.upper(): rows for kind, rows in kinds.items()}
        for name, kinds in result["curves"].items()
    }
    macs = [row["macs"] / MILLION for row in result["exits"]]
    always = result["accuracy_by_exit"][FLOAT]
    axes[0].plot(macs, always, linestyle="", marker="x", color=INK, label=f"{FLOAT}, always exit 1, 2 …")
    for number, place in enumerate(zip(macs, always, strict=True), 1):
        axes[0].annotate(str(number), place, xytext=(5, -10), textcoords="offset points", fontsize=8, color=INK)
    plot_curves(axes, shown)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    bottom, top = axes[0].get_ylim()
    spare = max(LEAST_SPAN - (top - bottom), 0.0) / 2
    axes[0].set_ylim(bottom - spare, top + spare)
    subject = f"ViT with {len(result['exits'])} early exits, {result['test_images']:,} CIFAR-10 test images"
    figure.suptitle(f"{subject}, a dot a threshold", fontsize=10)
    return svg_text(figure)
