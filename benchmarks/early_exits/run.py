"""Early exits, float against integer: accuracy on test images against mean MACs and measured milliseconds.

    python -m benchmarks.early_exits.train --work DIR
    python -m benchmarks.early_exits.run --work DIR [--images 2000] [--calibration 128]

Quantises DIR/model with the images that its training kept back, lets every test image go through all exits of every
artifact on each of its runtimes, and times the stages with the product's bench. Artifacts stay in DIR: a run that was
stopped goes on from them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.early_exits.figure import draw
from benchmarks.early_exits.measure import float_answers, joined, plain, same_classes, scheme_answers
from benchmarks.early_exits.train import MODEL, RECORD, kept_back
from benchmarks.steps import write_result
from mobileicsa.api import quantize_exits
from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import EARLY_EXIT, read_manifest
from mobileicsa.bench.environment import environment
from mobileicsa.bench.exits import FLOAT, bench_exits
from mobileicsa.cli.screen import Screen
from mobileicsa.core.errors import MobileICSAError
from mobileicsa.io.json_file import read_json
from mobileicsa.methods import cifar10
from mobileicsa.methods.tasks import Examples
from mobileicsa.models.exit_folder import read_exits, read_model
from mobileicsa.quantize.steps import Progress

RESULT = "early-exits-cifar10"
SCHEMES = ("w8a8", "w4a8")
CALIBRATION = "calibration.npz"
REPEAT = 99


def evenly(examples: Examples, count: int) -> Examples:
    """`count` of the examples, from the first to the last; they are sorted by class."""
    return examples.take(np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(np.int64))


def measure(
    work: Path, calibration: Examples, test: Examples, progress: Progress, repeat: int = REPEAT
) -> dict[str, Any]:
    """The whole result but the environment; `calibration` and `test` images have labels."""
    model = read_model(work / MODEL)
    exits = read_exits(work / MODEL, model.spec)
    macs, labels = [row["macs"] for row in exits], test.labels.numpy()
    np.savez(work / CALIBRATION, inputs=calibration.inputs.numpy(), labels=calibration.labels.numpy())
    artifacts = {scheme: _artifact(work, scheme, progress) for scheme in SCHEMES}
    before = float_answers(model, test)
    measured, benches = {}, {}
    for scheme, folder in artifacts.items():
        bench = bench_exits(folder, baseline_float=True, repeat=repeat, threads=1, progress=progress)
        benches[scheme] = bench["backends"]
        tick = progress.step(f"{scheme}: {len(test)} test images", 1)
        measured[scheme] = scheme_answers(folder, list(bench["backends"]), test)
        tick()
    return {
        "model": read_json(work / MODEL / RECORD),
        "exits": [{key: row[key] for key in ("exit", "blocks", "macs", "parameters")} for row in exits],
        "calibration_images": len(calibration),
        "test_images": len(test),
        "repeat": repeat,
        "threads": 1,
        "accuracy_by_exit": {
            FLOAT: before.by_exit(labels),
            **{s: {name: row["by_exit"] for name, row in found.items()} for s, found in measured.items()},
        },
        "same_classes_as_float32": {
            s: {name: same_classes(before, row["answers"]) for name, row in found.items()}
            for s, found in measured.items()
        },
        "latency": benches,
        "curves": joined(before.curve(labels, macs, plain(len(macs))), measured, benches),
    }


def _artifact(work: Path, scheme: str, progress: Progress) -> Path:
    folder = work / scheme
    if not (folder / layout.MANIFEST).is_file():
        quantize_exits(work / MODEL, scheme, folder, calibration=work / CALIBRATION, progress=progress)
    read_manifest(folder, EARLY_EXIT)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that `train` wrote the model into")
    parser.add_argument("--images", type=int, default=2000, help="test images; default: %(default)s")
    parser.add_argument("--calibration", type=int, default=128, help="images kept back; default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args(arguments)
    screen = Screen(json=False, debug=False)
    try:
        source = cifar10.load(options.data)
        seed = read_json(options.work / MODEL / RECORD)["seed"]
        calibration = evenly(kept_back(source.train, seed)[1], options.calibration)
        with screen.progress() as progress:
            result = measure(options.work, calibration, evenly(source.test, options.images), progress)
    except MobileICSAError as error:
        screen.note(str(error))
        raise SystemExit(error.exit_code) from error
    result["environment"] = environment()
    write_result(RESULT, result, draw(result))


if __name__ == "__main__":
    main()
