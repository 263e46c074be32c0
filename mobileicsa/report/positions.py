"""Loss by position in the window: a table's rows, the verdict in words and a figure, from report.json."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.figures import COLORS, INK, drawing
from mobileicsa.report.words import backend_name, number

# A bucket's figures, with a reference; alone it has the first.
FIGURES = ("loss", "reference_loss", "difference", "standard_error", "kl_to_reference")
VERDICTS = {True: "yes", False: "no", None: "not judged"}


def positions_view(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the page's section shows; None where nothing was measured."""
    if found is None:
        return None
    return {
        "rows": [
            {"position": position_words(row), "tokens": f"{row['tokens']:,}"}
            | {key: number(row.get(key), 4) for key in FIGURES}
            for row in found["buckets"]
        ],
        "terms": (
            f"{backend_name(found['backend'])} on {found['text']}: {found['windows']} whole windows of "
            f"{found['window']:,} tokens (text SHA-256 {found['sha256'][:12]}…), loss in nats a token. "
            "Standard errors are over windows."
            + (" Float reads the artifact's prefix too." if found.get("reference_prefix") else "")
        ),
        "verdict": VERDICTS[found["drift"]] if "drift" in found else None,
        "drifts": found.get("drift"),
        "basis": drift_basis(found),
        "note": found.get("note"),
        "warning": found["warning"],
    }


def position_words(row: dict[str, Any]) -> str:
    return f"{row['from']:,}–{row['to']:,}"


def drift_basis(found: dict[str, Any]) -> str | None:
    """What the verdict rests on; None where no slope was fitted."""
    if found.get("slope") is None:
        return None
    # Reports of earlier versions have none.
    divergence = f", KL to float by {_slope(found, 'kl_slope')}" if "kl_slope" in found else ""
    return (
        f"with each doubling of the position the difference changes by {_slope(found, 'slope')} nats{divergence}; "
        f"drift would be {found['threshold']} or more of difference, and more than two standard errors"
    )


def _slope(found: dict[str, Any], key: str) -> str:
    error = found[f"{key}_standard_error"]
    return f"{found[key]:+.4f}" + ("" if error is None else f" ± {error:.4f}")


def positions_figure(found: dict[str, Any] | None) -> str | None:
    """The difference to float by position, with two standard errors and the fitted line; else the loss alone."""
    if found is None:
        return None
    compared = "drift" in found
    buckets = found["buckets"]
    x = [row["log2_position"] for row in buckets]
    y = [row["difference" if compared else "loss"] for row in buckets]
    with drawing("positions", 9, 2.7) as (_, axes, result):
        bars = [2 * (row.get("standard_error") or 0.0) for row in buckets]
        axes.errorbar(x, y, yerr=bars if any(bars) else None, color=COLORS[1], marker="o", ms=4, lw=1.2, capsize=3)
        if compared:
            axes.axhline(0, color=INK, alpha=0.35, linewidth=0.8)
        if found.get("slope") is not None:
            # Through the middle of what it was fitted to, where a bucket weighs as much as it has tokens.
            tokens = sum(row["tokens"] for row in buckets)
            middle, height = (
                sum(v * row["tokens"] for v, row in zip(vs, buckets, strict=True)) / tokens for vs in (x, y)
            )
            line = [height + found["slope"] * (at - middle) for at in x]
            axes.plot(x, line, color=COLORS[0], linestyle="--", linewidth=1.2, label="slope")
            axes.legend(frameon=False, fontsize=9)
        axes.set_xticks(x, [position_words(row) for row in buckets])
        axes.set_xlabel("position in the window, logarithmic")
        axes.set_ylabel("loss over float, nats" if compared else "loss, nats")
        axes.margins(x=0.06)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    return result[0]
