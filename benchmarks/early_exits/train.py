"""Train the ViT with early exits in one place, on CIFAR-10's training images: the model of the early-exit figure.

    python -m benchmarks.early_exits.train --work DIR [--steps 3000] [--seed 0]

Writes DIR/model, a folder as `methods run reefl` hands over, with `training.json` beside its files. A tenth of the
training images is kept back: `exits.json` has the accuracies on them, and choices are made on them. Test images are not
read. Seed and steps give the same weights again on the same machine and number of threads.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.early_exits.training import BATCH, Settings, train
from mobileicsa.bench.environment import environment
from mobileicsa.cli.screen import Screen
from mobileicsa.core.errors import MobileICSAError
from mobileicsa.io.staging import Staging
from mobileicsa.methods import cifar10
from mobileicsa.methods.base import Trial
from mobileicsa.methods.partition import split
from mobileicsa.methods.reefl.artifact import write_model
from mobileicsa.methods.reefl.models import accuracies
from mobileicsa.methods.tasks import Examples

TASK = "cifar10"
MODEL, RECORD = "model", "training.json"
KEPT_BACK = 0.1
SHOWN_STEPS = 200


def kept_back(train: Examples, seed: int) -> tuple[Examples, Examples]:
    """What is learned from, and what is not, of the training images."""
    learned, kept = split(np.arange(len(train)), KEPT_BACK, seed)
    return train.take(learned), train.take(kept)


def make_model(work: Path, data: Path, settings: Settings, screen: Screen, per_class: int | None = None) -> list[float]:
    """Train into the new folder work/model; the accuracy of each exit on the images kept back, which it returns.

    Raises UsageError where the folder is not empty.
    """
    source = cifar10.load(data, per_class)
    examples, validation = kept_back(source.train, settings.seed)
    spec = settings.spec(examples, source.classes)
    recent: list[float] = []
    started = time.monotonic()

    def after(step: int, loss: float) -> None:
        recent.append(loss)
        if len(recent) == SHOWN_STEPS:
            screen.note(f"step {step + 1:,}: loss {sum(recent) / len(recent):.3f}")
            recent.clear()

    model = train(spec, examples, settings, after)
    seconds = time.monotonic() - started
    found = accuracies(model, validation)
    trial = Trial(
        metrics={f"{TASK}_accuracy_exit_{exit}": value for exit, value in enumerate(found, 1)},
        tensors={f"{TASK}/{name}": value for name, value in model.state_dict().items()},
        notes={"specs": {TASK: spec.to_json()}},
    )
    record: dict[str, Any] = {
        **asdict(settings),
        "batch": BATCH,
        "data": cifar10.identity(data),
        "learned": len(examples),
        "kept_back": len(validation),
        "validation_accuracy": found,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "environment": environment(),
    }
    with Staging(work / MODEL, "training", resumable=False) as staging:
        write_model(staging, ".", TASK, trial)
        staging.write_json(RECORD, record)
        staging.commit()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that the model goes into, as model/")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args(arguments)
    screen = Screen(json=False, debug=False)
    try:
        found = make_model(options.work, options.data, Settings(steps=options.steps, seed=options.seed), screen)
    except MobileICSAError as error:
        screen.note(str(error))
        raise SystemExit(error.exit_code) from error
    shown = ", ".join(f"{value:.1%}" for value in found)
    print(f"wrote {options.work / MODEL}: accuracy of the exits on {TASK} images kept back: {shown}")


if __name__ == "__main__":
    main()
