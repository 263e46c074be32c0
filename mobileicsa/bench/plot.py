"""`bench --plot`: a result as SVG figures, each turn a dot, each median a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileicsa.io.atomic import write_bytes

BLUE, GREY = "#3b7dd8", "#7d8590"
SPEEDS = (("decode_tokens_per_s", "decode, tokens/s"), ("prefill_tokens_per_s", "prefill, tokens/s"))


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """`speed.svg`, and for a phone `temperature.svg`; returns the files. The same result gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(_contenders(result))
    drawn = {"speed.svg": _speed(rows, _title(result))}
    if any(row.get("laps") for _, row in rows):
        drawn["temperature.svg"] = _temperature(rows, _title(result))
    for name, data in drawn.items():
        write_bytes(folder / name, data)
    return [folder / name for name in drawn]


def _contenders(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, row in result["backends"].items():
        if "skipped" in row:
            continue
        yield name, row
        if "float32" in row:
            yield f"{name} float32", row["float32"]


def _title(result: dict[str, Any]) -> str:
    return f"{result['environment']['cpu']}: {result['prompt_tokens']} + {result['generate_tokens']} tokens"


def _speed(rows: list[tuple[str, dict[str, Any]]], title: str) -> bytes:
    figure, axes = _canvas(2, 1.1 + 0.45 * len(rows))
    for axis, (key, words) in zip(axes, SPEEDS, strict=True):
        for place, (_, row) in enumerate(rows):
            color = GREY if place and rows[place][0].endswith("float32") else BLUE
            axis.barh(place, row[key], color=color, alpha=0.35, height=0.6)
            turns = [turn[key] for turn in row["turns"]]
            axis.scatter(turns, [place] * len(turns), color=color, s=10)
        axis.set_yticks(range(len(rows)), [name for name, _ in rows])
        axis.invert_yaxis()
        axis.set_xlabel(words)
        axis.set_xlim(left=0)
    axes[1].set_yticklabels([])
    return _saved(figure, title)


def _temperature(rows: list[tuple[str, dict[str, Any]]], title: str) -> bytes:
    figure, (axis,) = _canvas(1, 2.8)
    for name, row in rows:
        after = [lap["skin_c"][1] for lap in row["laps"]]
        turns = range(1, len(after) + 1)
        if any(value is None for value in after):
            continue
        axis.plot(turns, after, marker="o", markersize=3, label=name)
        hot = [(turn, value) for turn, value, lap in zip(turns, after, row["laps"], strict=True) if lap["throttled"]]
        axis.scatter([turn for turn, _ in hot], [value for _, value in hot], color="#d9622b", s=60, marker="x")
    axis.set_xticks(range(1, 1 + max(len(row["laps"]) for _, row in rows)))
    axis.set_xlabel("turn (x: throttled, in no median)")
    axis.set_ylabel("skin after it, °C")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False)
    return _saved(figure, title)


def _canvas(columns: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _saved(figure: Any, title: str) -> bytes:
    import io

    import matplotlib

    figure.suptitle(title, fontsize=10)
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
