"""The text that the small model learns from, and the text that it is measured on; no line of one is in the other.

| text | used | licence |
|---|---|---|
| `wikitext2/wiki.valid.tokens` | all; the last 5 % of its articles for validation | CC BY-SA 3.0, GFDL |
| `text_small/tiny_shakespeare.txt` | the first 90 %; the last 5 % of that for validation | public domain |
| `gsm8k/train.jsonl.gz` | 2,000 problems: not more text than of the encyclopedia | MIT |
| `instructions/dolly_subset.jsonl` | all | CC BY-SA 3.0 |
| `instructions/self_instruct_seed_tasks.jsonl` | all | Apache-2.0 |
| `pud_multilingual/pud_en.tsv` | all | CC BY-SA 3.0 |

Measured on: WikiText-2 raw test, and what is left of Tiny Shakespeare. The raw test has WikiText's own spaces (" , ",
" @-@ "), and so has the `.tokens` form, which differs only in `<unk>` for rare words. Both are left as they are: a
model that had read wiki.valid with those spaces taken out would meet a foreign spelling in the test.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mobileicsa.core.errors import InputError
from mobileicsa.io.hashing import sha256_bytes

WIKI, WIKI_TEST = "wikitext2/wiki.valid.tokens", "wikitext2/wiki.test.raw"
PLAYS = "text_small/tiny_shakespeare.txt"
# What the tokens form of WikiText has in place of a rare word.
UNKNOWN = "<unk>"
# Shares of the text before a cut; the second is of what the first left.
TRAINING_SHARE, LEARNED_SHARE = 0.9, 0.95
PROBLEMS = 2000

_TITLE = re.compile(r"^(?= = [^=\n].* = ?$)", re.MULTILINE)
_CALCULATION = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True)
class Source:
    """A file of the data folder and how its text becomes documents to learn from."""

    file: str
    licence: str
    documents: Callable[[str], list[str]]


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and to choose the best step with; `files`: SHA-256 (hex) of every file that was read."""

    train: list[str]
    validation: list[str]
    files: dict[str, str]


def read_corpus(data: Path) -> Corpus:
    """The whole corpus. Raises InputError naming a file of the data folder that is missing or broken."""
    files: dict[str, str] = {}
    articles = wiki_articles(read_file(data, WIKI, files))
    last = int(len(articles) * LEARNED_SHARE)
    plays, watched = cut_at_blank_line(training_plays(read_file(data, PLAYS, files)), LEARNED_SHARE)
    train = [*articles[:last], plays]
    for source in OTHERS:
        text = read_file(data, source.file, files)
        try:
            train += source.documents(text)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{data / source.file}: not in the form expected: {error!r}") from error
    return Corpus(train, [*articles[last:], watched], files)


def evaluation_texts(data: Path) -> dict[str, str]:
    """The texts that the trained model is measured on, whole."""
    return {"wikitext2": read_file(data, WIKI_TEST, {}), "shakespeare": held_out_plays(read_file(data, PLAYS, {}))}


def training_plays(text: str) -> str:
    """The first 90 % of Tiny Shakespeare."""
    return cut_at_blank_line(text, TRAINING_SHARE)[0]


def held_out_plays(text: str) -> str:
    """The last 10 % of Tiny Shakespeare."""
    return cut_at_blank_line(text, TRAINING_SHARE)[1]


def cut_at_blank_line(text: str, share: float) -> tuple[str, str]:
    """`text` in two, at the first blank line behind that share of its characters: a speech stays whole."""
    place = text.find("\n\n", int(len(text) * share))
    if place < 0:
        raise InputError(f"a text of {len(text)} characters has no blank line in its last {1 - share:.0%}")
    return text[: place + 2], text[place + 2 :]


def wiki_articles(text: str) -> list[str]:
    """The articles of a WikiText file, each from its title line ` = Title = ` on."""
    return [article for article in _TITLE.split(text) if article.strip()]


def _rows(text: str) -> list[dict[str, Any]]:
    # Not splitlines: JSON strings may hold other line separators as they are.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _problems(text: str) -> list[str]:
    """GSM8K's calculator marks are no text."""
    return [f"{row['question']}\n{_CALCULATION.sub('', row['answer'])}" for row in _rows(text)[:PROBLEMS]]


def _answers(text: str) -> list[str]:
    return [f"{row['instruction']}\n{row['output'].removesuffix('###eos_token###')}" for row in _rows(text)]


def _tasks(text: str) -> list[str]:
    tasks = []
    for row in _rows(text):
        example = row["instances"][0]
        tasks.append("\n".join(part for part in (row["instruction"], example["input"], example["output"]) if part))
    return tasks


def _sentences(text: str) -> list[str]:
    """Sentences of one article (equal first six characters of their ids) in a row."""
    rows = [line.split("\t", 1) for line in text.splitlines()]
    return [" ".join(sentence for _, sentence in group) for _, group in groupby(rows, key=lambda row: row[0][:6])]


OTHERS = (
    Source("gsm8k/train.jsonl.gz", "MIT", _problems),
    Source("instructions/dolly_subset.jsonl", "CC BY-SA 3.0", _answers),
    Source("instructions/self_instruct_seed_tasks.jsonl", "Apache-2.0", _tasks),
    Source("pud_multilingual/pud_en.tsv", "CC BY-SA 3.0", _sentences),
)
LICENCES = {WIKI: "CC BY-SA 3.0, GFDL", PLAYS: "public domain"} | {one.file: one.licence for one in OTHERS}


def read_file(data: Path, file: str, files: dict[str, str]) -> str:
    """The text of a file (UTF-8, .gz or not); its SHA-256 goes into `files`."""
    path = data / file
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file", hint="set MOBILEICSA_DATA or --data to the data folder") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    files[file] = sha256_bytes(raw)
    return text
