"""`mobileicsa doctor`: what this machine has, for a bug report and for the first question of support."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    return Answer(document=document, show=lambda console: _show(console, document))


def _show(console: Console, found: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts, size

    memory, ram = size(found["available_memory_bytes"]), size(found["ram_bytes"])
    show_facts(
        console,
        [
            ("system", f"{found['platform']}, {found['machine']}, Python {found['python']}"),
            ("processor", f"{found['cpu'] or 'unknown'}, {found['cores']} cores"),
            ("kernels for", ", ".join(found["cpu_flags"]) or "no known instruction set"),
            ("memory", f"{memory} available" + (f" of {ram}" if ram else "")),
            ("disk", f"{size(found['free_disk_bytes'])} free here"),
            *((f"back end {name}", state) for name, state in found["backends"].items()),
            ("adb", found["adb"]),
            *((name, version or "not installed") for name, version in found["versions"].items()),
        ],
    )
