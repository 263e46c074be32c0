"""Files appear whole or not at all: written beside their place, flushed to the disk, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from mobileicsa.core.errors import EnvironmentFault

if TYPE_CHECKING:  # torch takes a second to import, and most callers only write bytes
    from torch import Tensor


REMEDY = "free some disk space, or choose another --output"
SCRATCH_REMEDY = "free some disk space, or name another folder for temporary files with TMPDIR"
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# How other people's tools say it.
DISK_WORDS = tuple(map(os.strerror, DISK_FAULTS))


class WriteFault(EnvironmentFault):
    """The disk is full, read-only or broken."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says (disk full, no permission) into an error that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WriteFault(f"{path}: cannot be written: {reason}", hint=REMEDY) from error


@contextmanager
def writing_scratch() -> Iterator[None]:
    """The same where other people's code writes in the folder for temporary files, and else does what it likes."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        raise WriteFault(
            f"{tempfile.gettempdir()}: cannot be written: {error.strerror}", hint=SCRATCH_REMEDY
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; same tensors, same bytes."""
    from safetensors.torch import save_file

    owners: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name in sorted(tensors):
        # The format forbids tensors that share memory, and views; tied weights become two copies.
        tensor = tensors[name].detach().contiguous()
        owner = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if owner in owners else tensor
        owners.add(owner)

    def fill(temporary: Path) -> None:
        save_file(plain, temporary)

    write_through(path, fill)


def copy_file(source: Path, path: Path) -> None:
    def fill(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    write_through(path, fill)
