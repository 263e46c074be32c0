"""The early-exit figure: accuracy on test images against mean MACs and against mean milliseconds."""

from __future__ import annotations

from typing import Any

from benchmarks.svg import pyplot, svg_text
from mobileicsa.bench.exits import FLOAT
from mobileicsa.report.exits import plot_curves

# Of accuracy: a point is the standard error of 2,000 images, and is not to look like much.
LEAST_SPAN = 0.1


def draw(result: dict[str, Any]) -> str:
    """SVG text: two panels that share accuracy, a dot a threshold."""
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4.2), sharey=True)
    shown = {
        name: {kind if kind == FLOAT else kind.upper(): rows for kind, rows in kinds.items()}
        for name, kinds in result["curves"].items()
    }
    plot_curves(axes, shown)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    bottom, top = axes[0].get_ylim()
    spare = max(LEAST_SPAN - (top - bottom), 0.0) / 2
    axes[0].set_ylim(bottom - spare, top + spare)
    subject = f"ViT with {len(result['exits'])} early exits, {result['test_images']:,} CIFAR-10 test images"
    figure.suptitle(f"{subject}, a dot a threshold", fontsize=10)
    return svg_text(figure)
