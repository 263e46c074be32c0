"""The early-exit figure: accuracy on test images against mean MACs and against mean time."""

from __future__ import annotations

from typing import Any

from benchmarks.svg import pyplot, svg_text
from mobileicsa.bench.exits import FLOAT
from mobileicsa.report.exits import MILLION, plot_curves
from mobileicsa.report.figures import INK

# Of accuracy: a point is the standard error of 2,000 images, and is not to look like much.
LEAST_SPAN = 0.1


def draw(result: dict[str, Any]) -> str:
    """SVG text: two panels that share accuracy, a dot a threshold; in the first, crosses for one exit always.

    A scheme and the float32 in its turns can be compared, milliseconds of two schemes cannot where the machine's load
    changed: time is a part of what float32 took to the last exit, on the same runtime in the same turns.
    """
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4.2), sharey=True)
    macs = [row["macs"] / MILLION for row in result["exits"]]
    always = result["accuracy_by_exit"][FLOAT]
    axes[0].plot(macs, always, linestyle="", marker="x", color=INK, label=f"{FLOAT}, always exit 1, 2 …")
    for number, place in enumerate(zip(macs, always, strict=True), 1):
        axes[0].annotate(str(number), place, xytext=(6, 0), textcoords="offset points", fontsize=8, color=INK)
    plot_curves(axes, _relative(result))
    axes[1].set_xlabel(f"mean time a sample, {FLOAT}'s to the last exit = 1")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    bottom, top = axes[0].get_ylim()
    spare = max(LEAST_SPAN - (top - bottom), 0.0) / 2
    axes[0].set_ylim(bottom - spare, top + spare)
    subject = f"ViT with {len(result['exits'])} early exits, {result['test_images']:,} CIFAR-10 test images"
    figure.suptitle(f"{subject}, a dot a threshold", fontsize=10)
    return svg_text(figure)


def _relative(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The curves with `mean_ms` as that part, by the names that the figure shows; float32's are the first scheme's."""
    benches = result["latency"]
    own = {FLOAT: next(iter(benches.values())), **benches}

    def relative(rows: list[dict[str, Any]], name: str, kind: str) -> list[dict[str, Any]]:
        whole = own[kind][name][FLOAT]["exits_ms"][-1]
        return [{**row, "mean_ms": row["mean_ms"] / whole} for row in rows]

    return {
        name: {kind if kind == FLOAT else kind.upper(): relative(rows, name, kind) for kind, rows in kinds.items()}
        for name, kinds in result["curves"].items()
    }
