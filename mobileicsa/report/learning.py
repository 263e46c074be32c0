"""What the learning stages did: a table's rows and a figure, from report.json."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.figures import COLORS, INK, drawing

SCOPES = {"model": "end to end", "rotation": "rotations, before rounding"}
MEASURES = {
    "logits": "KL to float",
    "hidden": "relative error of the last hidden states",
    "expected": "expected KL of rounding",
}


def stages_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """All that learned, in order: rotations where they did, then the recipe's stages."""
    rotation = report.get("rotation")
    first = [] if rotation is None else [{**rotation, "scope": "rotation", "loss": "expected"}]
    return [*first, *(report.get("learning") or [])]


def learning_rows(stages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One row a stage: what it minimised, on windows that it did not learn from, before and after."""
    return [_block_row(stage) if stage["scope"] == "block" else _model_row(stage) for stage in stages]


def _block_row(stage: dict[str, Any]) -> dict[str, str]:
    blocks = stage["blocks"]
    before, after = (sum(row[key] for row in blocks) / len(blocks) for key in ("before", "after"))
    left = sum(not row["kept"] for row in blocks)
    words = "1 block did not get better and was" if left == 1 else f"{left} blocks did not get better and were"
    return {
        "scope": "block by block",
        "steps": f"{stage['steps']} a block",
        "measure": "mean relative error of a block's output",
        "before": f"{before:.4f}",
        "after": f"{after:.4f}",
        "note": f"{words} left alone" if left else "",
    }


def _model_row(stage: dict[str, Any]) -> dict[str, str]:
    best = stage["steps_seen"].index(stage["best_step"])
    note = stage["stopped"] or ("nothing got better: left alone" if stage["best_step"] == 0 else "")
    return {
        "scope": SCOPES[stage["scope"]],
        "steps": str(stage["steps"]),
        "measure": MEASURES[stage["loss"]],
        "before": f"{stage['held_out'][0]:.4f}",
        "after": f"{stage['held_out'][best]:.4f}",
        "note": note,
    }


def learning_figure(stages: list[dict[str, Any]]) -> str | None:
    """A panel a stage: each block's error before and after, or the loss by step."""
    if not stages:
        return None
    with drawing("learning", 9, 0.6 + 2.3 * len(stages), rows=[1] * len(stages)) as (_, axes, result):
        for axis, stage in zip(axes if len(stages) > 1 else [axes], stages, strict=True):
            if stage["scope"] == "block":
                layers = range(len(stage["blocks"]))
                for key, color in (("before", COLORS[1]), ("after", COLORS[0])):
                    axis.plot(layers, [row[key] for row in stage["blocks"]], color=color, marker="o", ms=3, label=key)
                axis.set_xlabel("layer")
                axis.set_ylabel("error of output")
            else:
                axis.plot(stage["steps_seen"], stage["held_out"], color=COLORS[0], marker="o", ms=3, label="held out")
                seen, losses = stage["steps_seen"][1:], stage["training"][1:]
                axis.plot(seen, losses, color=COLORS[1], marker="o", ms=3, label="learned from")
                axis.set_xlabel("step")
                axis.set_ylabel("loss")
            axis.set_ylim(bottom=0)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
            # Above the axes: no line can run through it.
            axis.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return result[0]
