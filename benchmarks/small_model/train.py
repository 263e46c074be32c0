"""Train a small Llama from scratch, whose weights lie on no grid: a second model for the accuracy table.

    python -m benchmarks.small_model.train --output DIR [--minutes 25] [--seed 0]

Writes a Hugging Face folder (`config.json`, `model.safetensors` in float32, `tokenizer.json`, ...) and `training.json`,
which says what it learned from and how well. The text is that of corpus.py; the step that is best on its validation
part is kept. Interrupted, the same command goes on from its last checkpoint. A folder that is finished is not touched.
With `--minutes` the number of steps depends on the machine; all else follows from the seed (see training.py).
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.small_model.corpus import LICENCES, UNKNOWN, Corpus, evaluation_texts, read_corpus
from benchmarks.small_model.record import RECORD
from benchmarks.small_model.settings import BATCH, WINDOW, Settings
from benchmarks.small_model.state import State, load, restore, save
from benchmarks.small_model.tokens import BOS, EOS, Batches, token_stream, train_tokenizer, windows_of
from benchmarks.small_model.training import mean_loss, new_state, train
from mobileicsa.artifact.model import FloatModel
from mobileicsa.bench.environment import environment
from mobileicsa.cli.failure import INTERRUPTED
from mobileicsa.cli.screen import Screen
from mobileicsa.core.errors import MobileICSAError, UsageError
from mobileicsa.evaluate.perplexity import evaluate
from mobileicsa.io.atomic import writing
from mobileicsa.io.json_file import write_json
from mobileicsa.io.lock import OutputLock
from mobileicsa.quantize.learn_math import product_dtype

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Text:
    """The corpus as the model reads it: `train` (N) int64 ids, `validation` (M, WINDOW) int64 windows."""

    tokenizer: Tokenizer
    train: Tensor
    validation: Tensor

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Tokenizer) -> Text:
        validation = [windows_of(token_stream(tokenizer, [text]), WINDOW) for text in corpus.validation]
        return cls(tokenizer, token_stream(tokenizer, corpus.train), torch.cat(validation))


def make_model(output: Path, data: Path, settings: Settings, screen: Screen) -> dict[str, Any]:
    """Train into the folder `output`, or go on there; the record that was written to its training.json.

    Raises UsageError where the folder is finished, holds other files, or was begun with other settings or text.
    """
    _check_place(output)
    corpus, test = read_corpus(data), evaluation_texts(data)
    checkpoint = output / CHECKPOINT
    run = asdict(settings) | {f"SHA-256 of {file}": digest for file, digest in corpus.files.items()}
    state = new_state(settings)
    if checkpoint.is_file():
        kept = load(checkpoint, run)
        restore(state, kept)
        tokenizer = Tokenizer.from_str(kept["tokenizer"])
        screen.note(f"{checkpoint}: goes on at step {state.steps:,}")
    else:
        tokenizer = train_tokenizer(corpus.train, settings.vocab)
        save(state, checkpoint, run, tokenizer.to_str())
    text = Text.of(corpus, tokenizer)

    def checked(entry: dict[str, Any]) -> None:
        save(state, checkpoint, run, tokenizer.to_str())
        screen.note(_line(entry))

    with screen.progress() as progress:
        tick = progress.step(f"training ({settings.unit})", settings.total)
        batches = Batches(text.train, WINDOW, BATCH, settings.seed)
        train(state, settings, batches, text.validation, tick=tick, checked=checked)
        _write_model(output, state, tokenizer)
        model = FloatModel.from_pretrained(output)
        measured = {name: evaluate(model, one, window=WINDOW, progress=progress) for name, one in test.items()}
    record = _record(settings, state, text, corpus) | {"test": measured}
    write_json(output / RECORD, record)
    checkpoint.unlink()
    return record


def _check_place(output: Path) -> None:
    if (output / RECORD).exists():
        raise UsageError(f"{output}: holds a finished model", hint="name a new folder with --output")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        # A run that was killed in its first write leaves nothing but a temporary file.
        others = [path for path in output.iterdir() if path.suffix != ".tmp"]
    if others and not (output / CHECKPOINT).is_file():
        raise UsageError(f"{output}: is not empty, and no training was begun in it", hint="name a new folder")


def _line(entry: dict[str, Any]) -> str:
    speed = entry["step"] * BATCH * WINDOW / entry["seconds"]
    return (
        f"step {entry['step']:,}: loss {entry['loss']:.3f}, validation {entry['validation_loss']:.3f}; "
        f"{entry['seconds'] / 60:.1f} min, {speed:,.0f} tokens/s"
    )


def _write_model(output: Path, state: State, tokenizer: Tokenizer) -> None:
    """The best step's weights and the tokenizer, in Hugging Face's form."""
    state.model.load_state_dict(state.best_weights)
    named = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN)
    with writing(output):
        state.model.save_pretrained(output)
        named.save_pretrained(output)


def _record(settings: Settings, state: State, text: Text, corpus: Corpus) -> dict[str, Any]:
    """All but the test, with the model at its best step. Losses in nats a token."""
    return {
        "seed": settings.seed,
        "limit": {settings.unit: settings.total},
        "steps": state.steps,
        "seconds": state.seconds,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "config": state.model.config.to_diff_dict(),
        "text": [{"file": file, "licence": LICENCES[file], "sha256": digest} for file, digest in corpus.files.items()],
        "tokens": {
            "vocabulary": settings.vocab,
            "train": len(text.train),
            "validation": len(text.validation) * (WINDOW - 1),
            "seen": state.steps * BATCH * (WINDOW - 1),
        },
        "products": str(product_dtype(torch.device("cpu"))).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "history": state.history,
        "best": state.best,
        # Not that of the history: there products are those of training.
        "validation_perplexity": math.exp(mean_loss(state.model, text.validation, torch.float32)),
        "environment": environment(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--minutes", type=float, default=25, help="wall time of the training; default: 25")
    limit.add_argument("--steps", type=int, default=None, help="a limit that gives the same weights on every run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=Settings.hidden, help="a multiple of 128; default: %(default)s")
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--vocab", type=int, default=Settings.vocab)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args(arguments)
    screen = Screen(json=False, debug=False)
    try:
        settings = Settings(
            minutes=options.minutes if options.steps is None else None,
            steps=options.steps,
            seed=options.seed,
            hidden=options.hidden,
            layers=options.layers,
            vocab=options.vocab,
        )
        with screen.working(), OutputLock(options.output):
            record = make_model(options.output, options.data, settings, screen)
    except MobileICSAError as error:
        screen.note(str(error))
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt as error:
        screen.note("interrupted: the same command goes on where it stopped")
        raise SystemExit(INTERRUPTED) from error
    found = {name: f"{one['perplexity']:.2f}" for name, one in record["test"].items()}
    print(f"wrote {options.output}: validation perplexity {record['validation_perplexity']:.2f}, test {found}")


if __name__ == "__main__":
    main()
