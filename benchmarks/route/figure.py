"""The figure of the route's benchmark: what accuracy costs and what speed gains, in one picture."""

from __future__ import annotations

from typing import Any

from benchmarks.svg import pyplot, svg_text

COLORS = {"minmax": "#b9bec6", "prefix": "#d9622b", "gptq": "#3b7dd8"}
RUNTIMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch"}


def draw(result: dict[str, Any]) -> str:
    """SVG text: perplexity over float by scheme and recipe, decode speed over float32 by runtime."""
    figure, (accuracy, speed) = pyplot().subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1))
    _accuracy(accuracy, result["rows"])
    _speed(speed, [row for row in result["rows"] if "bench" in row])
    for axes in (accuracy, speed):
        axes.axhline(1.0, color="#555", linewidth=0.8, linestyle="--")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['model']}, {result['tokens']:,} tokens of {result['text']}", fontsize=10)
    return svg_text(figure)


def _accuracy(axes: Any, rows: list[dict[str, Any]]) -> None:
    for index, row in enumerate(rows):
        axes.bar(index, row["ratio"], color=COLORS[row["recipe"]], width=0.7)
        axes.annotate(f"{row['ratio']:.2f}×", (index, row["ratio"]), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(rows)), [f"{row['scheme']}\n{row['recipe']}" for row in rows], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("perplexity over float32 (lower is better)", fontsize=8)
    axes.set_yticks([1, 2, 4, 8], ["1×", "2×", "4×", "8×"])
    axes.minorticks_off()


def _speed(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = list[str]()
    for row in rows:
        for backend, words in RUNTIMES.items():
            ratio = row["bench"][backend]["ratio_to_float32"]["decode_tokens_per_s"]
            low, high = row["bench"][backend]["ratio_to_float32"]["decode_tokens_per_s_range"]
            axes.bar(len(names), ratio, color=COLORS["prefix"], width=0.7)
            axes.plot([len(names)] * 2, [low, high], color="#333", linewidth=1)
            axes.annotate(f"{ratio:.2f}×", (len(names) + 0.05, ratio), ha="left", va="bottom", fontsize=8)
            names.append(f"{row['scheme']}\n{words}")
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_ylabel("decode speed over float32, same runtime", fontsize=8)
