"""What this machine and this process may use: memory and disk, in bytes."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.io import cgroup

# Interpreter and PyTorch, and with the exporters, before any weight (measured).
START_MEMORY_BYTES, BASE_MEMORY_BYTES = 192 << 20, 900 << 20
# Address space that libraries and thread stacks reserve beyond what ever becomes resident (measured).
RESERVED_ADDRESSES_BYTES = 768 << 20


def available_memory() -> int:
    """The least of what the kernel says is available, what the address-space limit leaves, and the cgroup's limit."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(max(soft - RESERVED_ADDRESSES_BYTES, 0))
    grouped = cgroup.available_memory()
    if grouped is not None:
        limits.append(grouped)
    return min(limits) if limits else 1 << 62


def require_memory(needed: int, remedy: str = "") -> None:
    """EnvironmentFault with both figures where less than `needed` bytes are available; `remedy` comes before others."""
    available = available_memory()
    if needed > available:
        raise EnvironmentFault(
            f"needs about {needed >> 20:,} MiB of memory, {available >> 20:,} MiB are available",
            hint=f"{remedy}close other programs, calibrate on fewer windows, or take a machine with more memory",
        )


def peak_memory() -> int:
    """Peak resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage's figure starts at what the parent process held when it started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_disk(folder: Path) -> int:
    """Free bytes of the file system that holds `folder` or its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
