"""Keep what eval, bench and verify measured in the artifact's report.json, and write its page and card again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.io.json_file import read_json, write_json
from mobileicsa.report.html import write_report


def record_evaluation(folder: Path, result: dict[str, Any], text_name: str) -> None:
    """Keep the newest perplexity of each back end; `text_name` is the text file's name without its folder."""
    report = _read(folder)
    rows = {**report.get("evaluation", {}), result["backend"]: {**result, "text_name": text_name}}
    _write(folder, {**report, "evaluation": rows})


def record_bench(folder: Path, result: dict[str, Any]) -> None:
    """Keep the newest bench of each back end."""
    report = _read(folder)
    rows = {**report.get("bench", {}).get("backends", {}), **result["backends"]}
    _write(folder, {**report, "bench": {**result, "backends": rows}})


def record_verification(folder: Path, result: dict[str, Any]) -> None:
    _write(folder, {**_read(folder), "verification": result})


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)


def _write(folder: Path, report: dict[str, Any]) -> None:
    write_json(folder / layout.REPORT, report)
    write_report(folder)
