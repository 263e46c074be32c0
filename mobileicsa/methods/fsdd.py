"""Free Spoken Digit Dataset: `{digit}_{speaker}_{index}.wav`, 8 kHz; log-mel pictures, clients by speaker."""

from __future__ import annotations

import re
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mobileicsa.core.errors import InputError
from mobileicsa.methods.log_mel import Mel, Picture, log_mel, read_wav
from mobileicsa.methods.tasks import Examples, Split, data_files, digest

FOLDER = "fsdd"
FILES = ("fsdd.tar.gz",)
# Windows of 32 ms every 20 ms.
MEL = Mel(rate=8000, mels=40, frames=32, window=256, hop=160)
# The data set's own split: indices 0 to 4 of every speaker and digit are for the test.
TEST_INDICES = 5
MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")

Clip = tuple[Picture, int, str]


def identity(data: Path | None) -> str:
    """Digest of the archive; InputError where it is missing."""
    return digest(data_files(data, FOLDER, FILES))


@lru_cache(maxsize=1)
def load(data: Path | None, per_class: int | None = None) -> Split:
    """Clips as (n, 1, 40, 32) log-mel pictures; `groups` are the speakers. `per_class`: training clips a digit."""
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
                picture = log_mel(read_wav(stream.read(), MEL.rate, f"{archive}: {member.name}"), MEL)
                (test if int(match[3]) < TEST_INDICES else train).append((picture, int(match[1]), match[2]))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{archive}: cannot be read: {error}", hint="get the archive again") from error
    if not train or not test:
        raise InputError(f"{archive}: holds no clips named digit_speaker_index.wav for training and test")
    return Split(train=_examples(_first(train, per_class)), test=_examples(test), classes=10)


def _first(clips: list[Clip], per_class: int | None) -> list[Clip]:
    """As many of each digit, from all speakers in turn."""
    if per_class is None:
        return clips
    speakers = sorted({speaker for _, _, speaker in clips})
    each = max(1, per_class // len(speakers))
    kinds = {(digit, speaker): 0 for _, digit, speaker in clips}
    kept = []
    for clip in clips:
        kinds[clip[1:]] += 1
        if kinds[clip[1:]] <= each:
            kept.append(clip)
    return kept


def _examples(rows: list[Clip]) -> Examples:
    pictures, labels, speakers = zip(*rows, strict=True)
    inputs = torch.from_numpy(np.stack(pictures)[:, None])
    return Examples(inputs=inputs, labels=torch.tensor(labels), groups=tuple(speakers))
