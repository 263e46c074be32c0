"""CIFAR-10 subset: 32x32 JPEG files in two archives, `train/CLASS/NNNN.jpg` and `test/...`."""

from __future__ import annotations

import io
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.methods.tasks import Examples, Split, data_files, digest

FOLDER = "cifar10"
FILES = ("cifar10_train_1000_per_class.tar.gz", "cifar10_test_200_per_class.tar.gz")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
# Channel means and deviations of CIFAR-10's training set, as commonly published.
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MAX_FILE_BYTES = 1 << 16


def identity(data: Path | None) -> str:
    """Digest of the archives; InputError where one is missing."""
    return digest(data_files(data, FOLDER, FILES))


@lru_cache(maxsize=1)
def load(data: Path | None, per_class: int | None = None) -> Split:
    """10,000 training and 2,000 test images, (n, 3, 32, 32) normalised by channel; at most `per_class` of each."""
    files = data_files(data, FOLDER, FILES)
    train, test = (_read(files[name], per_class) for name in FILES)
    return Split(train=train, test=test, classes=len(CLASSES))


def _read(archive: Path, per_class: int | None) -> Examples:
    from PIL import Image, UnidentifiedImageError

    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    try:
        with tarfile.open(archive) as tar:
            for member in sorted((m for m in tar if m.isfile() and m.name.endswith(".jpg")), key=lambda m: m.name):
                kind = member.name.split("/")[-2]
                if kind not in CLASSES or member.size > MAX_FILE_BYTES:
                    raise InputError(f"{archive}: {member.name}: not an image of a class of CIFAR-10")
                if labels.count(CLASSES.index(kind)) == per_class:
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                with Image.open(io.BytesIO(stream.read()), formats=("JPEG",)) as image:
                    if image.size != (SIDE, SIDE):
                        raise InputError(f"{archive}: {member.name}: {image.size}, expected {SIDE}x{SIDE}")
                    images.append(np.asarray(image.convert("RGB")))
                labels.append(CLASSES.index(kind))
    except (OSError, EOFError, tarfile.TarError, UnidentifiedImageError) as error:
        raise InputError(f"{archive}: cannot be read: {error}", hint="get the archive again") from error
    if not images:
        raise InputError(f"{archive}: holds no .jpg file")
    return Examples(inputs=normalized(np.stack(images)), labels=torch.tensor(labels))


def normalized(pixels: NDArray[np.uint8]) -> Tensor:
    """(n, height, width, 3) bytes to (n, 3, height, width) float32 of mean 0 and deviation 1 by channel."""
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
