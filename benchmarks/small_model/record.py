"""`training.json`: what a model trained here learned from; written last, so that it marks a finished folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.io.json_file import read_json

RECORD = "training.json"


def read_record(model: str) -> dict[str, Any] | None:
    """The record in a model's folder; None for a model from elsewhere."""
    path = Path(model) / RECORD
    return read_json(path) if path.is_file() else None
