"""Path guard: names read from files must stay inside their folder; outputs must be safe to write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from mobileicsa.core.errors import EnvironmentFault, InputError, UsageError
from mobileicsa.io.atomic import WriteFault

GIB = 1 << 30
# What is left of the usual 255 for the names of the work space beside the output.
MAX_NAME_BYTES = 160
MAX_PART_BYTES = 255


def inside(root: Path, name: str, *, allowed_roots: Sequence[Path] = ()) -> Path:
    """The path `root / name`, which may not exist yet, if it can only lead to a file inside `root`.

    Refused: absolute names, `..`, backslashes, control characters, symbolic links that resolve outside `root`
    and `allowed_roots`, and hard links that share their bytes with a file outside these folders.
    """
    if not name or any(ord(char) < 32 for char in name):
        raise InputError(f"{root}: file name {name!r} is empty or holds control characters")
    pure = PurePosixPath(name)
    if pure.is_absolute() or PureWindowsPath(name).drive or "\\" in name or ".." in pure.parts:
        raise InputError(
            f"{root}: file name {name!r} leads outside the folder",
            hint="only relative names without '..' are read; get the files from their original source",
        )
    roots = [folder.resolve() for folder in (root, *allowed_roots)]
    candidate = root / pure
    try:
        resolved = candidate.resolve()
        status = resolved.stat() if resolved.exists() else None
    except (OSError, RuntimeError) as error:
        raise InputError(f"{candidate}: cannot be resolved: {error}") from error
    if not any(resolved.is_relative_to(folder) for folder in roots):
        raise InputError(
            f"{candidate}: is a symbolic link to {resolved}, outside the folder",
            hint="copy the file itself into the folder",
        )
    if status is not None and resolved.is_file() and status.st_nlink > _links_inside(status, resolved, roots):
        raise InputError(
            f"{candidate}: is a hard link shared with a file elsewhere (link count {status.st_nlink})",
            hint=f"make a copy of its own: cp '{candidate.name}' copy && mv copy '{candidate.name}'",
        )
    return candidate


def _links_inside(status: os.stat_result, resolved: Path, roots: Sequence[Path]) -> int:
    """How many directory entries of this file lie in its own folder or the roots (not searched deeper)."""
    if status.st_nlink == 1:
        return 1
    count = 0
    for folder in {resolved.parent, *roots}:
        for entry in os.scandir(folder):
            found = entry.stat(follow_symlinks=False)
            count += (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)
    return count


def check_output(output: Path, model: Path | None, overwrite: bool, needed_bytes: int = 0) -> None:
    """Refuse an output folder that cannot or must not be written, before any heavy work; leaves nothing behind."""
    target = output.resolve()
    if not target.name:
        raise UsageError(f"{output}: is a whole file system", hint="name a new folder with --output")
    if len(os.fsencode(target.name)) > MAX_NAME_BYTES:
        raise InputError(f"{output}: the name is longer than {MAX_NAME_BYTES} bytes", hint="choose a shorter --output")
    if any(len(os.fsencode(part)) > MAX_PART_BYTES for part in target.parts):
        raise InputError(
            f"{output}: a name in it is longer than {MAX_PART_BYTES} bytes", hint="choose another --output"
        )
    if target.exists() and not target.is_dir():
        raise UsageError(f"{output}: is a file, not a folder", hint="name a new folder with --output")
    if model is not None:
        _keep_apart(output, target, model)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UsageError(f"{output}: exists and is not empty", hint="name a new folder, or replace it with --overwrite")
    # Parents that are missing are made by whoever writes: a dry run must not.
    present = next(parent for parent in target.parents if parent.exists())
    try:
        # Permission bits say nothing about read-only mounts or full inode tables: really create a file.
        with tempfile.TemporaryFile(dir=present):
            pass
        free = shutil.disk_usage(present).free
    except OSError as error:
        raise WriteFault(
            f"{present}: cannot be written: {error.strerror or error}", hint="choose another --output"
        ) from error
    if free < needed_bytes:
        raise EnvironmentFault(
            f"{present}: needs {needed_bytes / GIB:.1f} GiB, {free / GIB:.1f} GiB are free",
            hint="free some space or choose --output on another disk",
        )


def _keep_apart(output: Path, target: Path, model: Path) -> None:
    source = model.resolve()
    if target == source or (source.is_dir() and target.is_relative_to(source)):
        raise UsageError(f"{output}: lies in the model folder {model}", hint="write to a folder outside of the model")
    if source.is_relative_to(target):
        raise UsageError(
            f"{output}: holds the model {model}, which would be replaced", hint="write to a folder beside the model"
        )


def public_name(name: str) -> str:
    """A model's name for a report: a local path may tell who built it where, so its last part only."""
    path = Path(name)
    return path.resolve().name if path.exists() else name
