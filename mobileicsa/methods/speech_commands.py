"""Speech Commands v2, 35 words, 16 kHz: `WORD/SPEAKER_nohash_N.wav` and the data set's own list of test clips."""

from __future__ import annotations

import tarfile
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mobileicsa.core.errors import InputError
from mobileicsa.methods.log_mel import Mel, log_mel, read_wav
from mobileicsa.methods.tasks import Examples, Split, data_files, digest

FOLDER = "speech_commands"
FILES = ("speech_commands_v0.02.tar.gz",)
TEST_LIST = "testing_list.txt"
BACKGROUND = "_background_noise_"
MEL = Mel(rate=16000, mels=64, frames=64, window=512, hop=248)
MAX_FILE_BYTES = 1 << 20


def identity(data: Path | None) -> str:
    """Digest of the archive; InputError where it is missing."""
    return digest(data_files(data, FOLDER, FILES))


@lru_cache(maxsize=1)
def load(data: Path | None, per_class: int | None = None) -> Split:
    """Clips as (n, 3, 64, 64) log-mel pictures, the three channels alike; `groups` are the speakers."""
    archive = data_files(data, FOLDER, FILES)[FILES[0]]
    pictures: dict[str, tuple[np.ndarray, str, str]] = {}
    listed: set[str] = set()
    try:
        with tarfile.open(archive) as tar:
            counts: Counter[str] = Counter()
            for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
                word, _, file = member.name.removeprefix("./").rpartition("/")
                if (
                    member.size > MAX_FILE_BYTES
                    or (file != TEST_LIST and not file.endswith(".wav"))
                    or word == BACKGROUND
                ):
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                if file == TEST_LIST:
                    listed = set(stream.read().decode().split())
                elif per_class is None or counts[word] < per_class:
                    counts[word] += 1
                    samples = read_wav(stream.read(), MEL.rate, f"{archive}: {member.name}")
                    pictures[f"{word}/{file}"] = (log_mel(samples, MEL), word, file.partition("_nohash_")[0])
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{archive}: cannot be read: {error}", hint="get the archive again") from error
    words = sorted({word for _, word, _ in pictures.values()})
    train = [found for name, found in pictures.items() if name not in listed]
    test = [found for name, found in pictures.items() if name in listed]
    if not train or not test:
        raise InputError(f"{archive}: holds no clips for training and test ({TEST_LIST} names the latter)")
    return Split(train=_examples(train, words), test=_examples(test, words), classes=len(words))


def _examples(rows: list[tuple[np.ndarray, str, str]], words: list[str]) -> Examples:
    pictures = torch.from_numpy(np.stack([picture for picture, _, _ in rows])[:, None]).expand(-1, 3, -1, -1)
    labels = torch.tensor([words.index(word) for _, word, _ in rows])
    return Examples(inputs=pictures, labels=labels, groups=tuple(speaker for _, _, speaker in rows))
