"""Files appear whole or not at all: written beside their place, flushed to the disk, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mobileicsa.core.errors import EnvironmentFault


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says (disk full, no permission) into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="free some disk space or choose another --output; finished stages are kept for --resume",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_through(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a temporary file, then give it its name in one step."""
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            fill(temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    def fill(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_through(path, fill)


def copy_file(source: Path, path: Path) -> None:
    def fill(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    write_through(path, fill)
