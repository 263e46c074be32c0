"""`StageStore`: results of finished stages, kept so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.core.errors import InputError
from mobileicsa.io.atomic import write_tensors, writing
from mobileicsa.io.faults import armed, fault_point
from mobileicsa.io.hashing import sha256_file
from mobileicsa.io.json_file import read_json, write_json

if TYPE_CHECKING:  # torch takes a second to import, and most callers only write bytes
    from torch import Tensor

MAX_DATA_BYTES = 256 << 20
_STAGE = re.compile(r"[a-z0-9][a-z0-9_.:-]*")

log = logging.getLogger(__name__)


class StageStore:
    """One safetensors and one JSON file for each stage.

    The JSON holds the hash of the stage's inputs and of its tensor file, and is written last: a stage without
    it, or whose hashes differ, was never finished.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def done(self, stage: str, input_hash: str) -> bool:
        """Whether a complete result for exactly these inputs is stored."""
        mark, tensors = self._paths(stage)
        if not mark.exists():
            return False
        try:
            entry = read_json(mark, max_bytes=MAX_DATA_BYTES)
            if entry.get("stage") != stage or entry.get("input_hash") != input_hash:
                log.info("stage %s: inputs changed, it runs again", stage)
                return False
            if entry.get("tensors_sha256") == sha256_file(tensors):
                return True
        except InputError as error:
            log.warning("stage %s: %s", stage, error.message)
        log.warning("stage %s: its stored result is damaged, it runs again", stage)
        return False

    def load(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and data of a stage for which `done` holds."""
        from safetensors.torch import load_file

        mark, tensors = self._paths(stage)
        data: dict[str, Any] = read_json(mark, max_bytes=MAX_DATA_BYTES)["data"]
        return load_file(tensors), data

    def save(self, stage: str, input_hash: str, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Store a result; it counts as done only once everything is on the disk."""
        mark, file = self._paths(stage)
        with writing(file):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_tensors(file, tensors)
        if armed(stage, "kill"):
            os.truncate(file, file.stat().st_size // 2)
            fault_point(stage, "kill")
        fault_point(stage, "before")
        entry = {"stage": stage, "input_hash": input_hash, "tensors_sha256": sha256_file(file), "data": dict(data)}
        write_json(mark, entry)
        fault_point(stage, "after")

    def _paths(self, stage: str) -> tuple[Path, Path]:
        if not _STAGE.fullmatch(stage):
            raise ValueError(f"stage name {stage!r}: lower-case letters, digits and _ . : - only")
        name = stage.replace(":", "-")
        return self._folder / f"{name}.json", self._folder / f"{name}.safetensors"
