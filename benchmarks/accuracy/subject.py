"""Which model a table is of, and the texts it is measured on: options that the accuracy benchmarks share."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.texts import text_files
from benchmarks.small_model.record import read_record
from benchmarks.steps import MODEL, Steps
from mobileicsa.core.errors import InputError


@dataclass(frozen=True)
class Subject:
    """`training`: the record of a model that was trained here; `windows` of each text, None for all; `data`: the data
    folder."""

    model: str
    name: str
    steps: Steps
    texts: dict[str, Path]
    training: dict[str, Any] | None
    windows: int | None
    data: Path

    def perplexity(self, model: str, name: str, backend: str, text: str) -> dict[str, Any]:
        """The answer of `mobileicsa eval` for the float model or an artifact folder, `name` in the work folder.

        The simulator's first text is compared with the float model token by token too.
        """
        reference = self.model if backend == "simulator" and text == next(iter(self.texts)) else None
        path = self.texts[text]
        found = self.steps.perplexity(model, f"{name}-{text}", backend, path, self.windows, reference=reference)
        answer: dict[str, Any] = found["answer"]
        return answer

    def floats(self) -> dict[str, dict[str, Any]]:
        """The float model's answer on each text."""
        return {text: self.perplexity(self.model, "float", "float", text) for text in self.texts}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default=MODEL, help="a model folder; default: %(default)s")
    parser.add_argument("--name", default=None, help="of the model in the results; default: as --model")
    parser.add_argument("--windows", type=int, default=None, help="of each text; default: all")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))


def subject(options: argparse.Namespace) -> Subject:
    """What `add_options`' options name. SystemExit naming a text that is missing."""
    name = options.name or Path(options.model).name
    # Answers in a work folder go by the names of rows: every other model has a folder of its own.
    steps = Steps(options.work if options.model == MODEL else options.work / name)
    training = read_record(options.model)
    try:
        texts = text_files(options.data, steps.work, trained_here=training is not None)
    except InputError as error:
        raise SystemExit(str(error)) from error
    return Subject(options.model, name, steps, texts, training, options.windows, options.data)
