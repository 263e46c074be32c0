"""What is measured after the build goes into the artifact's report.json, and its page is written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT
from mobileicsa.io.json_file import read_json, write_json
from mobileicsa.report.exit_page import write_exit_page
from mobileicsa.report.html import write_report

PAGES = {DECODER: write_report, EARLY_EXIT: write_exit_page}


def read_report(folder: Path) -> dict[str, Any]:
    """The artifact's report.json."""
    report: dict[str, Any] = read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)
    return report


def record(folder: Path, section: str, value: dict[str, Any]) -> None:
    """Put `value` into `section` ("verification", "bench", "comparison") of the report."""
    report = read_report(folder)
    _write(folder, {**report, section: value})


def record_evaluation(folder: Path, text_name: str, result: dict[str, Any], target: str | None = None) -> None:
    """Add a row for one back end, and target where it is not the artifact's first.

    Rows of another text or other windows are not comparable and make room.
    """
    report = read_report(folder)
    terms = {"text": text_name, "sha256": result["text_sha256"]}
    terms |= {name: result[name] for name in ("window", "stride", "tokens", "bos")}
    before = report.get("evaluation") or {}
    rows = before.get("rows", []) if {name: before.get(name) for name in terms} == terms else []
    row = {
        "backend": result["backend"] if target is None else f"{result['backend']}, {target}",
        "perplexity": result["perplexity"],
        "kl_to_float": result.get("kl_to_reference"),
        "top1_agreement": result.get("top1_agreement"),
    }
    kept = [other for other in rows if other["backend"] != row["backend"]]
    if "reference_perplexity" in result:
        kept = [other for other in kept if other["backend"] != "float"]
        kept.insert(0, {"backend": "float", "perplexity": result["reference_perplexity"]})
    _write(folder, {**report, "evaluation": {**terms, "warning": result.get("warning"), "rows": [*kept, row]}})


def record_positions(folder: Path, text_name: str, result: dict[str, Any], target: str | None = None) -> None:
    """Keep the loss by position; it stands beside the evaluation, whose windows are usually shorter."""
    kept = ("window", "perplexity", "reference_perplexity", "reference_prefix", "warning")
    section = {
        "text": text_name,
        "sha256": result["text_sha256"],
        "backend": result["backend"] if target is None else f"{result['backend']}, {target}",
        **{name: result.get(name) for name in kept},
        **result["by_position"],
    }
    record(folder, "by_position", section)


def calibration_facts(folder: Path) -> dict[str, Any]:
    """What the report knows of the text that the artifact was calibrated on."""
    facts: dict[str, Any] = read_report(folder).get("calibration") or {}
    return facts


def _write(folder: Path, report: dict[str, Any]) -> None:
    write_json(folder / layout.REPORT, report)
    write_page(folder)


def write_page(folder: Path) -> None:
    """Write (again) what people read of an artifact, from its report.json."""
    PAGES[read_report(folder).get("kind", DECODER)](folder)
