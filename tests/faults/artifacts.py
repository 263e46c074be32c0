"""Copies of finished artifacts that a fault test may damage, and the command line run on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import write_manifest
from mobileicsa.cli.main import execute


@dataclass(frozen=True)
class Ran:
    """Exit code, the JSON document of stdout, and all that was said, errors included."""

    code: int
    document: dict[str, Any]
    said: str


def command(capture: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    capture.readouterr()
    code = execute([*arguments, "--json"])
    printed = capture.readouterr()
    return Ran(code, json.loads(printed.out), printed.out + printed.err)


def in_a_process(*arguments: str) -> Ran:
    """The same in a process of its own, which a crash would end by a signal (a negative code)."""
    made = subprocess.run(
        [sys.executable, "-m", "mobileicsa", *arguments, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    return Ran(made.returncode, json.loads(made.stdout), made.stdout + made.stderr)


def sign(folder: Path, **changes: Any) -> None:
    """Let the manifest fit the files again, as one who exchanges both would; `changes` go into it."""
    facts = json.loads((folder / layout.MANIFEST).read_text())
    facts = {k: v for k, v in facts.items() if k not in ("format", "files", "checksum")}
    write_manifest(folder, {**facts, **changes})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], None]] = {"truncated": truncate, "halved": cut_in_half, "flipped": flip}
