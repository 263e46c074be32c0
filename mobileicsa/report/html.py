"""`report.html` of an artifact, written from its `report.json`."""

from __future__ import annotations

import html
import json
from pathlib import Path

from mobileicsa.artifact import layout
from mobileicsa.io.atomic import write_bytes
from mobileicsa.io.json_file import read_json


def write_report(folder: Path) -> None:
    """Write (again) the report page of an artifact folder from its report.json."""
    report = read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)
    body = html.escape(json.dumps(report, indent=1)[:100_000])
    page = f"<!doctype html><meta charset=utf-8><title>mobileicsa</title><pre>{body}</pre>"
    write_bytes(folder / layout.REPORT_PAGE, page.encode())
