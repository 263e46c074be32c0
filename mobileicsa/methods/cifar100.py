"""CIFAR-100 in its binary form: records of coarse label, fine label and 3,072 bytes of pixels."""

from __future__ import annotations

import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mobileicsa.core.errors import InputError
from mobileicsa.methods.cifar10 import SIDE, normalized
from mobileicsa.methods.tasks import Examples, Split, data_files, digest

FOLDER = "cifar100"
FILES = ("cifar-100-binary.tar.gz",)
PARTS = ("train.bin", "test.bin")
CLASSES = 100
RECORD_BYTES = 2 + 3 * SIDE * SIDE
MAX_BYTES = 1 << 28


def identity(data: Path | None) -> str:
    """Digest of the archive; InputError where it is missing."""
    return digest(data_files(data, FOLDER, FILES))


@lru_cache(maxsize=1)
def load(data: Path | None, per_class: int | None = None) -> Split:
    """(n, 3, 32, 32) normalised by channel, fine labels; the first `per_class` of each."""
    archive = data_files(data, FOLDER, FILES)[FILES[0]]
    try:
        with tarfile.open(archive) as tar:
            parts = {Path(m.name).name: m for m in tar if m.isfile() and m.size <= MAX_BYTES}
            if not set(PARTS) <= set(parts):
                raise InputError(f"{archive}: holds no {' and '.join(PARTS)}", hint="it must be the binary version")
            train, test = (_examples(tar.extractfile(parts[name]).read(), archive, per_class) for name in PARTS)  # type: ignore[union-attr]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{archive}: cannot be read: {error}", hint="get the archive again") from error
    return Split(train=train, test=test, classes=CLASSES)


def _examples(data: bytes, archive: Path, per_class: int | None) -> Examples:
    if not data or len(data) % RECORD_BYTES:
        raise InputError(f"{archive}: {len(data)} bytes are not whole records of {RECORD_BYTES}")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 1].astype(np.int64)
    if labels.max() >= CLASSES:
        raise InputError(f"{archive}: label {labels.max()}, at most {CLASSES - 1}")
    kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]))
    pixels = records[kept, 2:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Examples(inputs=normalized(pixels), labels=torch.from_numpy(labels[kept]))
