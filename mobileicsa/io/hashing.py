"""SHA-256 of bytes, files and folders, read in pieces so that size never matters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mobileicsa.core.errors import InputError

CHUNK_BYTES = 1 << 20


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}", hint="check that the file still exists"
        ) from error
    return digest.hexdigest()


def sha256_parts(parts: Iterable[tuple[str, str]]) -> str:
    """One digest over (name, digest) pairs; the order in which they come does not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(parts):
        # The length in front keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(f"{len(name.encode())}:{name}:{value}\n".encode())
    return digest.hexdigest()


def sha256_tree(folder: Path) -> str:
    """One digest over the relative names and contents of every regular file below `folder`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sha256_parts((path.relative_to(folder).as_posix(), sha256_file(path)) for path in files)
