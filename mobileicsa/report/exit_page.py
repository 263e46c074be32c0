"""`report.html` of an early-exit artifact, and the figure of its latency, from its report.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.io.atomic import write_bytes
from mobileicsa.io.json_file import read_json
from mobileicsa.report.exits import exits_figure, latency_figure
from mobileicsa.report.html import page_template

TEMPLATE = "exits.html.j2"


def write_exit_page(folder: Path) -> None:
    """Write (again) the page of an artifact folder, and LATENCY_FIGURE where its latency was measured with labels."""
    report = read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)
    measured = (report.get("bench") or {}).get("curves")
    if measured:
        write_bytes(folder / layout.LATENCY_FIGURE, latency_figure(measured).encode())
    write_bytes(folder / layout.REPORT_PAGE, render_exits(report).encode())


def render_exits(report: dict[str, Any]) -> str:
    """The page: one file, no script, nothing loaded from elsewhere."""
    from markupsafe import Markup

    bench = report.get("bench") or {}
    drawn = {
        "Accuracy against multiply-accumulates": exits_figure(report) if "curves" in report else None,
        "Accuracy against measured latency": latency_figure(bench["curves"]) if bench.get("curves") else None,
    }
    figures = [{"title": title, "svg": Markup(svg)} for title, svg in drawn.items() if svg is not None]
    tables = [_exits(report), _agreement(report), *([_latency(bench)] if bench else [])]
    return page_template(TEMPLATE).render(report=report, tables=tables, figures=figures)


def _exits(report: dict[str, Any]) -> dict[str, Any]:
    rows = [(row["exit"], row["blocks"], f"{row['macs']:,}", _percent(row.get("accuracy"))) for row in report["exits"]]
    note = "Accuracy as the folder of the float model says."
    return {"title": "Exits", "columns": ("exit", "blocks", "MACs", "accuracy"), "rows": rows, "note": note}


def _agreement(report: dict[str, Any]) -> dict[str, Any]:
    """As written, and as `verify` found it last."""
    checked = (report.get("verification") or {}).get("backends", {})
    rows = []
    for target, used in report["targets"].items():
        for name, row in used.items():
            shares = ("-", "-", "-")  # of one that compiles only
            if (found := row["agreement"]) is not None:
                alone = ", ".join(_share(stage["equal_share"]) for stage in found["stages"])
                shares = (alone, _share(found["equal_share"]), _share(found["same_labels"]))
            rows.append((f"{name} for {target}", *shares, _verified(checked.get(name))))
    columns = ("back end", "stages", "chain", "same class", "verify")
    note = "Share of numbers equal to the simulator's: of each stage with the simulator's inputs, of stages in a chain."
    return {"title": "Agreement", "columns": columns, "rows": rows, "note": note}


def _verified(row: dict[str, Any] | None) -> str:
    return "-" if row is None else row.get("skipped") or ("ok" if row["ok"] else "FAILED")


def _latency(bench: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for name, row in bench["backends"].items():
        if "skipped" not in row:
            rows.append((name, *(f"{ms:.2f}" for ms in row["exits_ms"])))
            if "float32" in row:
                rows.append((f"{name}, float32", *(f"{ms:.2f}" for ms in row["float32"]["exits_ms"])))
    exits = max((len(row) - 1 for row in rows), default=0)
    facts = bench["environment"]
    return {
        "title": "Latency",
        "columns": ("milliseconds", *(f"exit {number}" for number in range(1, exits + 1))),
        "rows": rows,
        "note": f"Medians of {bench['repeat']} turns over {bench['inputs']} inputs on {facts['cpu']}.",
    }


def _share(part: float) -> str:
    """Never rounded up to all."""
    return "100%" if part == 1.0 else f"{min(part, 0.9999):.2%}"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.1%}"
