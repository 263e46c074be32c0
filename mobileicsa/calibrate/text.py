"""Calibration text given by the user: a plain text or JSON-lines file becomes windows of token ids."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.hashing import sha256_bytes

# Enough for any calibration; a larger file is read up to here, so that memory stays bounded.
MAX_TEXT_BYTES = 64 << 20
# Only so much text for each token asked for is tokenized: a tokenizer takes 200 bytes of memory for each of text.
CHARACTERS_PER_TOKEN = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationText:
    """`windows` (N, T) int64; `sha256` of the text used; `note` says what was cut or missing ("" if nothing)."""

    windows: Tensor
    sha256: str
    note: str


def read_text(path: Path) -> str:
    """The text of a .txt file, or the "text" fields of a .jsonl file, one per line."""
    text = _decoded(path)
    if path.suffix == ".jsonl":
        text = "\n".join(_rows(text, path))
    if not text.strip():
        raise InputError(f"{path}: holds no text", hint="it needs at least one sentence")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a .txt file, or the "text" fields of a .jsonl file; those without any text left out."""
    text = _decoded(path)
    lines = _rows(text, path) if path.suffix == ".jsonl" else text.split("\n")
    kept = [line for line in lines if line.strip()]
    if not kept:
        raise InputError(f"{path}: holds no text", hint="give one text a line")
    return kept


def _decoded(path: Path) -> str:
    data = _read(path)
    # Offsets in messages count from the file's first byte.
    skipped = len(data) - len(data := data.removeprefix(b"\xef\xbb\xbf"))
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: line {line}: not UTF-8 (byte {error.start + skipped})", hint="convert it to UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{path}: line {text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL byte")
    return text


def _rows(text: str, path: Path) -> list[str]:
    # Not splitlines: JSON strings may hold other line separators as they are.
    rows = enumerate(text.split("\n"), 1)
    return [_text_of(line, path, number) for number, line in rows if line.strip()]


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file", hint="give a UTF-8 .txt file, or .jsonl with a text field")
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) <= MAX_TEXT_BYTES:
        return data
    log.warning("%s: only its first %d MiB are used", path, MAX_TEXT_BYTES >> 20)
    # Not in the middle of a line or, where the whole file is one, of a character.
    starts_character = (end for end in range(MAX_TEXT_BYTES, MAX_TEXT_BYTES - 4, -1) if data[end] & 0xC0 != 0x80)
    return data[: data.rfind(b"\n") + 1 or next(starts_character, MAX_TEXT_BYTES)]


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: line {number}: not JSON") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError(f'{path}: line {number}: has no string field "text"')
    return str(row["text"])


def make_windows(
    text: str, encode: Callable[[str], Sequence[int]], vocab_size: int, samples: int, length: int, where: str
) -> CalibrationText:
    """Up to `samples` windows of length - 1 tokens (BOS or the prefix comes before them), spread over the text."""
    ids = list(encode(_excerpts(text, samples, length * CHARACTERS_PER_TOKEN)))
    for offset, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise InputError(
                f"{where}: token {token} (number {offset}) is outside the model's vocabulary of {vocab_size}",
                hint="the tokenizer belongs to another model",
            )
    if not ids:
        raise InputError(f"{where}: the tokenizer makes no tokens of it")
    size = min(length - 1, len(ids))
    count = min(samples, len(ids) // size)
    notes = []
    if size < length - 1:
        notes.append(f"only {len(ids)} tokens, windows shortened to {size}")
    if count < samples:
        notes.append(f"{count} of {samples} windows asked for")
    starts = [(len(ids) - size) * i // max(count - 1, 1) for i in range(count)]
    windows = torch.tensor([ids[start : start + size] for start in starts], dtype=torch.int64)
    return CalibrationText(windows, sha256_bytes(text.encode()), "; ".join(notes))


def interleaved(first: Tensor, second: Tensor) -> Tensor:
    """The windows of (N, T) and of (M, T) in one (N + M, T), both spread evenly, so that any part of it has both."""
    places = torch.cat([(torch.arange(len(windows)) + 0.5) / len(windows) for windows in (first, second)])
    return torch.cat((first, second))[torch.argsort(places, stable=True)]


def _excerpts(text: str, count: int, size: int) -> str:
    """The whole text, or `count` pieces of `size` characters spread over a long one."""
    if len(text) <= count * size:
        return text
    starts = [(len(text) - size) * i // max(count - 1, 1) for i in range(count)]
    return "\n".join(text[start : start + size] for start in starts)
