"""Two texts unlike each other: news (AG News) and worked sums (GSM8K); the last tenth of each is held out."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

NAMES = ("news", "sums")
CHARACTERS = 600_000


def write_texts(data: Path, folder: Path) -> None:
    """`<name>.txt` to train and calibrate on, `<name>-held-out.txt` to measure on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("news", _news(data)), ("sums", _sums(data))):
        text = "\n".join(lines)[:CHARACTERS]
        cut = text.rindex("\n", 0, len(text) * 9 // 10)
        (folder / f"{name}.txt").write_text(text[:cut], encoding="utf-8")
        (folder / f"{name}-held-out.txt").write_text(text[cut + 1 :], encoding="utf-8")


def _news(data: Path) -> list[str]:
    with gzip.open(data / "ag_news" / "ag_news_test.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return [" ".join(row[1:]) for row in csv.reader(file)]


def _sums(data: Path) -> list[str]:
    with gzip.open(data / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [f"{row['question']} {row['answer']}" for row in rows]
