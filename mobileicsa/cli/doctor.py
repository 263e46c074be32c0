"""`mobileicsa doctor`: what this machine has, for a bug report and for the first question of support."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import JsonFlag

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
  mobileicsa doctor
  mobileicsa doctor --json
"""


def doctor(context: typer.Context, as_json: JsonFlag = False) -> Answer:
    """Show versions, processor, memory, disk and back ends."""
    from pathlib import Path

    from mobileicsa.bench.environment import environment
    from mobileicsa.io.machine import available_memory, free_disk
    from mobileicsa.program.backend import backends

    document = {
        **environment(),
        "available_memory_bytes": available_memory(),
        "free_disk_bytes": free_disk(Path.cwd()),
        "backends": {name: found.unavailable() or "ready" for name, found in backends().items()},
        "adb": shutil.which("adb") or "not found",
    }

    def show(console: Console) -> None:
        for key, value in document.items():
            console.print(f"{key}: {value}", markup=False)

    return Answer(document=document, show=show)
