"""A data folder with a few lines in every file that the small model reads, all of them made up."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

from benchmarks.small_model.corpus import PLAYS, WIKI, WIKI_TEST

PHRASE = "the sea is wide and the old ship sails far from home under a pale moon while nobody sings to it"


def sentences(count: int, seed: int) -> str:
    chosen = random.Random(seed)
    return " ".join(f"{' '.join(chosen.choices(PHRASE.split(), k=9))} ." for _ in range(count))


def write_data(folder: Path) -> Path:
    articles = [
        f" = Title {i} = \n \n {sentences(12, i)} \n = = Part = = \n A <unk> {sentences(3, i)}\n" for i in range(10)
    ]
    plays = [f"KING:\n{sentences(2, 100 + i)}\n" for i in range(160)]
    rows = {
        "gsm8k/train.jsonl.gz": [{"question": "How many?", "answer": "6*2=<<6*2=12>>12.\n#### 12"}],
        "instructions/dolly_subset.jsonl": [{"instruction": "Say yes.", "output": "Yes.###eos_token###"}],
        "instructions/self_instruct_seed_tasks.jsonl": [
            {"instruction": "Add.", "instances": [{"input": "", "output": "Done.\u2028Really."}]}
        ],
    }
    files = {
        WIKI: "".join(articles),
        WIKI_TEST: f" = Other = \n \n {sentences(20, 50)} \n",
        PLAYS: "\n".join(plays),
        "pud_multilingual/pud_en.tsv": "n01001011\tOne.\nn01001013\tTwo.\nn01002017\tThree.\n",
    }
    files |= {name: "\n".join(json.dumps(row, ensure_ascii=False) for row in found) for name, found in rows.items()}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return folder
