"""Clients' texts: sentences of one language each, as windows of token ids, cut into training, validation and test."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mobileicsa.artifact.tokenizer import open_tokenizer
from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.checkpoint import Checkpoint

PUD, XCOPA = "pud_multilingual", "xcopa"
PUD_LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "ru", "tr", "zh")
XCOPA_LANGUAGES = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
# Sentences of a language, shared out between two pools; the same ones in all languages, for they are parallel.
PUD_SENTENCES = 1000


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Windows in each part of a client's text."""

    train: int
    validation: int
    test: int

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


@dataclass(frozen=True, kw_only=True)
class ClientText:
    """`windows` (parts.total, 1 + T) int64: a start token and T of text, those of training first, then validation."""

    pool: str
    language: str
    windows: Tensor

    @property
    def name(self) -> str:
        return f"{self.pool}-{self.language}"


def pud_file(language: str) -> str:
    return f"pud_{language}.tsv"


def xcopa_files(language: str) -> tuple[str, ...]:
    """Read one after the other; only their sentences are used, not which choice is right."""
    return f"val.{language}.jsonl", f"test.{language}.jsonl"


def read_clients(
    files: Mapping[str, Sequence[Path]], checkpoint: Checkpoint, spec: ModelSpec, length: int, parts: Parts
) -> list[ClientText]:
    """Clients in the order of `files`: PUD's first half of sentences is seen, its second unseen; XCOPA's are new.

    `files`: pool:language to paths. `length`: ids of text in a window; the model's start token comes before them.
    """
    encode, start = _encoder(checkpoint, spec), spec.bos_id or 0
    readers: Mapping[str, Callable[[Path], list[str]]] = {
        "seen": lambda path: _pud(path)[: PUD_SENTENCES // 2],
        "unseen": lambda path: _pud(path)[PUD_SENTENCES // 2 :],
        "new": _xcopa,
    }
    clients = []
    for key, paths in files.items():
        pool, _, language = key.partition(":")
        sentences = [sentence for path in paths for sentence in readers[pool](path)]
        windows = _windows(sentences, encode, start, length, parts.total, paths[0])
        clients.append(ClientText(pool=pool, language=language, windows=windows))
    return clients


def _windows(
    sentences: Sequence[str], encode: Callable[[str], list[int]], start: int, length: int, count: int, path: Path
) -> Tensor:
    ids: list[int] = []
    for sentence in sentences:
        ids += encode(sentence + "\n")
        if len(ids) >= count * length:
            rows = torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)
            return torch.cat((torch.full((count, 1), start), rows), dim=1)
    raise InputError(
        f"{path}: {len(sentences)} sentences make {len(ids)} tokens, {count} windows of {length} are asked for",
        hint="ask for fewer windows, or shorter ones",
    )


def _encoder(checkpoint: Checkpoint, spec: ModelSpec) -> Callable[[str], list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write_tokenizer(Path(folder))
        return open_tokenizer(Path(folder), spec, checkpoint.source_name).encode


def _pud(path: Path) -> list[str]:
    return [sentence for sentence in (line.partition("\t")[2].strip() for line in _lines(path)) if sentence]


def _xcopa(path: Path) -> list[str]:
    sentences = []
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            sentences += [row["premise"], row["choice1"], row["choice2"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number}: not a row of XCOPA: {error}") from error
    return sentences


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            yield from (line for line in stream if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="it must be UTF-8 text") from error
