"""What this machine and this process may use: memory and disk, in bytes."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path


def available_memory() -> int:
    """The least of what the kernel says is available, the address-space limit, and the cgroup's limit."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if cgroup.is_file() and (text := cgroup.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits) if limits else 1 << 62


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
