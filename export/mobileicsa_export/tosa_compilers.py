"""Compilers that read TOSA shards: one run each, its product beside the shard, its record behind it."""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mobileicsa.core.errors import EnvironmentFault, MobileICSAError
from mobileicsa.io.atomic import DISK_WORDS, SCRATCH_REMEDY, WriteFault, copy_file, write_bytes
from mobileicsa.io.hashing import sha256_file
from mobileicsa.io.paths import inside
from mobileicsa_export.tosa_shards import Record, read_fields

logger = logging.getLogger(__name__)

TIMEOUT_S = 1800
LAST_LINES = 3
# How Vela, a Python program, and the VGF converter say that a file could not be written.
WRITE_WORDS = (*DISK_WORDS, "Error writing to file")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a compiler made of one shard; `refused` is its reason, and then there is no file.

    `npu`, `cpu`: operators by kind where it placed them; `numbers`: its own estimates.
    """

    shard: str
    source: str  # SHA-256 of the shard
    setting: str
    file: str | None = None
    sha256: str | None = None
    refused: str | None = None
    npu: dict[str, int] = field(default_factory=dict)
    cpu: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


# (the shard's path, an empty folder) -> the product in that folder, and the record's fields.
Tool = Callable[[Path, Path], tuple[Path, dict[str, Any]]]


class Refused(Exception):
    """The compiler does not take this shard; the text is its reason."""


def compile_all(
    folder: Path, written: dict[str, list[Record]], tool: Tool, *, suffix: str, setting: str
) -> dict[str, list[Compiled]]:
    """`<shard><suffix>` for each shard, or found whole for the same shard and setting; by method."""
    return {
        method: [_one(folder, record, tool, suffix, setting) for record in records]
        for method, records in written.items()
    }


def compiled_files(folder: Path, compiled: dict[str, list[Compiled]], suffix: str) -> tuple[Path, ...]:
    found = [c for records in compiled.values() for c in records]
    products = [inside(folder, c.file) for c in found if c.file is not None]
    return (*products, *(record_path(folder, c.shard, suffix) for c in found))


def record_path(folder: Path, shard: str, suffix: str) -> Path:
    return inside(folder, f"{Path(shard).stem}{Path(suffix).stem}.json")


def read_compiled(folder: Path, shard: str, suffix: str) -> Compiled:
    return read_fields(Compiled, record_path(folder, shard, suffix))


def _one(folder: Path, record: Record, tool: Tool, suffix: str, setting: str) -> Compiled:
    found = _whole(folder, record, suffix, setting)
    if found is not None:
        return found
    start: dict[str, Any] = {"shard": record.file, "source": record.sha256, "setting": setting}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            product, fields = tool(folder / record.file, Path(scratch))
        except Refused as reason:
            made = Compiled(**start, refused=str(reason))
        else:
            file = folder / f"{Path(record.file).stem}{suffix}"
            copy_file(product, file)
            made = Compiled(**start, file=file.name, sha256=sha256_file(file), **fields)
    write_bytes(record_path(folder, record.file, suffix), json.dumps(asdict(made), indent=1).encode())
    logger.info("%s: %s", record.file, "compiled" if made.refused is None else f"refused: {made.refused}")
    return made


def _whole(folder: Path, record: Record, suffix: str, setting: str) -> Compiled | None:
    try:
        found = read_compiled(folder, record.file, suffix)
        same = (found.source, found.setting) == (record.sha256, setting) and found.file is not None
        return found if same and sha256_file(inside(folder, str(found.file))) == found.sha256 else None
    except MobileICSAError:
        return None


def run(command: list[str]) -> str:
    """Standard output; Refused with the last lines of what a failing command said, WriteFault where these tell of a
    full disk: the scratch folder may lie on another than the output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"{command[0]}: cannot run: {error}") from error
    if done.returncode != 0:
        text = done.stdout + done.stderr
        said = [line.strip() for line in text.splitlines() if line.strip()]
        last = " ".join(said[-LAST_LINES:]) or f"exit code {done.returncode}"
        if any(words in text for words in WRITE_WORDS):
            raise WriteFault(f"{tempfile.gettempdir()}: cannot be written: {last}", hint=SCRATCH_REMEDY)
        raise Refused(last)
    return done.stdout


def taken(compiled: dict[str, list[Compiled]]) -> float:
    """Share of the shards that the compiler did not refuse."""
    every = [c for records in compiled.values() for c in records]
    return sum(c.refused is None for c in every) / len(every)


def refusals(compiled: dict[str, list[Compiled]]) -> list[dict[str, str]]:
    """As `unsupported` of a back end's facts: refused shards, and operators that stayed on the CPU."""
    found = []
    for record in (c for records in compiled.values() for c in records):
        if record.refused is not None:
            found.append({"op": record.shard, "reason": record.refused})
        found += [
            {"op": f"{record.shard}: {kind}", "reason": f"{count} of them run on the CPU"}
            for kind, count in record.cpu.items()
        ]
    return found
