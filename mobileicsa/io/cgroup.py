"""What the control groups of this process leave it of memory: a container's limit, or a batch system's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_SYSTEM, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class _Names:
    """Where a version of control groups keeps its figures."""

    folder: str
    limit: str
    used: str
    cache: str  # field of memory.stat: file pages that the kernel gives up when memory is short


_V1 = _Names(folder="memory", limit="memory.limit_in_bytes", used="memory.usage_in_bytes", cache="total_inactive_file")
_V2 = _Names(folder="", limit="memory.max", used="memory.current", cache="inactive_file")


def available_memory(file_system: Path = FILE_SYSTEM, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes left below the tightest limit of this process's group and those around it; None without any."""
    found = [left for names, group in _groups(file_system, membership) if (left := _left(group, names)) is not None]
    return min(found, default=None)


def _groups(file_system: Path, membership: Path) -> Iterator[tuple[_Names, Path]]:
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = _V1 if controllers else _V2
        root = file_system / names.folder
        group = root / name.lstrip("/")
        # A container may see its own group as the root, under a name that does not exist inside it.
        for folder in (group, *group.parents):
            yield names, folder
            if folder == root:
                break


def _left(group: Path, names: _Names) -> int | None:
    try:
        limit = (group / names.limit).read_text().strip()
        if not limit.isdigit():  # "max"
            return None
        used = int((group / names.used).read_text())
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(int(limit) - used + int(fields.get(names.cache, 0)), 0)
    except (OSError, ValueError):
        return None
