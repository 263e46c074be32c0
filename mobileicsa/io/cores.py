"""Processor cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Logical cores this process may run on, which a container may make fewer than the machine has."""
    return len(_allowed())


def physical_cores() -> int:
    """The same with hyper-threads of one core counted once: the number of threads that integer kernels gain from."""
    siblings = {_siblings(core) for core in _allowed()}
    return len(siblings)


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _siblings(core: int) -> str:
    """Equal strings for logical cores that share a physical one; a core of its own where nothing is known."""
    path = TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(core)
