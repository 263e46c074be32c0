"""Free Spoken Digit Dataset: `{digit}_{speaker}_{index}.wav`, 8 kHz; log-mel pictures, clients by speaker."""

from __future__ import annotations

import io
import re
import tarfile
import wave
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mobileicsa.core.errors import InputError
from mobileicsa.methods.tasks import Examples, Split, data_files, digest

FOLDER = "fsdd"
FILES = ("fsdd.tar.gz",)
RATE = 8000
MELS, FRAMES = 40, 32
WINDOW, HOP, LOWEST_HZ = 256, 160, 60.0
# The data set's own split: indices 0 to 4 of every speaker and digit are for the test.
TEST_INDICES = 5
MAX_FILE_BYTES = 1 << 20
Clip = tuple[NDArray[np.float32], int, str]
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


def identity(data: Path | None) -> str:
    """Digest of the archive; InputError where it is missing."""
    return digest(data_files(data, FOLDER, FILES))


@lru_cache(maxsize=1)
def load(data: Path | None) -> Split:
    """Clips as (n, 1, 40, 32) log-mel pictures, each with mean 0 and deviation 1; `groups` are the speakers."""
    archive = data_files(data, FOLDER, FILES)[FILES[0]]
    train: list[Clip] = []
    test: list[Clip] = []
    try:
        with tarfile.open(archive) as tar:
            for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
                match = _NAME.fullmatch(member.name.rpartition("/")[2])
                if match is None or member.size > MAX_FILE_BYTES:
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                picture = log_mel(_samples(stream.read(), f"{archive}: {member.name}"))
                (test if int(match[3]) < TEST_INDICES else train).append((picture, int(match[1]), match[2]))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{archive}: cannot be read: {error}", hint="get the archive again") from error
    if not train or not test:
        raise InputError(f"{archive}: holds no clips named digit_speaker_index.wav for training and test")
    return Split(train=_examples(train), test=_examples(test), classes=10)


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) samples in [-1, 1] at 8 kHz to (40, 32): Hann windows of 32 ms every 20 ms, cut or padded at the end."""
    length = WINDOW + HOP * (FRAMES - 1)
    padded = np.pad(samples[:length], (0, max(0, length - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)) ** 2
    loud = np.log(power @ _mel_filters().T + 1e-6)
    normal = (loud - loud.mean()) / (loud.std() + 1e-6)
    picture: NDArray[np.float32] = np.ascontiguousarray(normal.T.astype(np.float32))
    return picture


@lru_cache(maxsize=1)
def _mel_filters() -> NDArray[np.float64]:
    """Triangles on the mel scale, (40, bins)."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, RATE / 2))
    centers = 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (bins - centers[:-2, None]) / (centers[1:-1] - centers[:-2])[:, None]
    falling = (centers[2:, None] - bins) / (centers[2:] - centers[1:-1])[:, None]
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters


def _samples(data: bytes, where: str) -> NDArray[np.float32]:
    try:
        with wave.open(io.BytesIO(data)) as clip:
            form = (clip.getframerate(), clip.getnchannels(), clip.getsampwidth())
            if form != (RATE, 1, 2):
                raise InputError(f"{where}: (rate, channels, bytes) {form}, expected {(RATE, 1, 2)}")
            return np.frombuffer(clip.readframes(clip.getnframes()), "<i2").astype(np.float32) / 32768
    except (wave.Error, EOFError) as error:
        raise InputError(f"{where}: not a WAV file: {error}") from error


def _examples(rows: list[Clip]) -> Examples:
    pictures, labels, speakers = zip(*rows, strict=True)
    inputs = torch.from_numpy(np.stack(pictures)[:, None])
    return Examples(inputs=inputs, labels=torch.tensor(labels), groups=tuple(speakers))
