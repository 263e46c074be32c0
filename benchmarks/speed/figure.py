"""The Pareto figure: decode and prefill speed against perplexity, a file's size as the area of its point."""

from __future__ import annotations

from typing import Any

from benchmarks.svg import pyplot, svg_text

COLORS = {"ours": "#d9622b", "llama.cpp": "#3b7dd8", "genai": "#5a9e57", "executorch": "#8f63b8", "torch": "#7a7f87"}
AREA_PER_MB = 1.2


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of (speed, perplexity) that no other beats in one without losing in the other; slowest first."""

    def beaten(name: str) -> bool:
        speed, perplexity = points[name]
        return any(s >= speed and p <= perplexity and (s, p) != (speed, perplexity) for s, p in points.values())

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name][0])


def draw(result: dict[str, Any]) -> str:
    """SVG text: one panel a figure of speed and prompt length."""
    rows = [row for row in result["rows"] if "perplexity" in row]
    prompts = sorted(rows[0]["speed"], key=int)
    figure, panels = pyplot().subplots(2, len(prompts), figsize=(4.6 * len(prompts), 7), squeeze=False)
    for line, (key, words) in enumerate((("decode_tokens_per_s", "decode"), ("prefill_tokens_per_s", "prefill"))):
        for column, prompt in enumerate(prompts):
            _panel(panels[line][column], rows, prompt, key)
            panels[line][column].set_title(f"{words}, prompt of {prompt} tokens", fontsize=9)
    figure.suptitle(f"{result['model']}, {result['threads']} thread(s): up and left is better", fontsize=10)
    return svg_text(figure)


def _panel(axes: Any, rows: list[dict[str, Any]], prompt: str, key: str) -> None:
    points = {row["name"]: (row["speed"][prompt][key], row["perplexity"]) for row in rows}
    for row in rows:
        name, (speed, perplexity) = row["name"], points[row["name"]]
        low, high = row["speed"][prompt][f"{key}_range"]
        color = COLORS[name.split()[0]]
        area = AREA_PER_MB * (row["file_bytes"] or 0) / 1e6 + 8
        axes.scatter(perplexity, speed, s=area, color=color, alpha=0.6, linewidths=0)
        axes.plot([perplexity] * 2, [low, high], color="#333", linewidth=1)
        axes.annotate(name, (perplexity, speed), fontsize=7, xytext=(4, 3), textcoords="offset points")
    best = front(points)
    axes.plot([points[n][1] for n in best], [points[n][0] for n in best], color="#555", linewidth=0.8, linestyle="--")
    axes.set_xlabel("perplexity (lower is better)", fontsize=8)
    axes.set_ylabel("tokens/s", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
