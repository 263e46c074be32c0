"""Accuracy of every recipe, and of peers, on a real model: same text, same windows, same scored tokens.

    python -m benchmarks.accuracy.run --work build/accuracy --windows 80
    python -m benchmarks.accuracy.run --work build/accuracy --windows 80 --model build/small --name small-llama

The second is for a model of benchmarks/small_model; its results have a file of their own.
WikiText-2 raw test and Tiny Shakespeare, windows of 256 tokens, BOS (or the artifact's prefix) first. Nothing here
has seen either (texts.py): calibration and learning use text that the model writes itself. A finished step's answer
stays in the work folder and is not computed again.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.figure import draw
from benchmarks.accuracy.peers import PEERS
from benchmarks.accuracy.texts import text_files
from benchmarks.small_model.record import read_record
from benchmarks.steps import INTEGER_ONLY, MODEL, RESULTS, WINDOW, Steps
from mobileicsa.bench.environment import environment
from mobileicsa.core.errors import InputError
from mobileicsa.io.json_file import write_json

KEPT = ("perplexity", "ratio", "kl_to_reference", "top1_agreement", "windows", "tokens")


@dataclass(frozen=True)
class Row:
    """One artifact. `exported`: written for the host too, and measured on its runtimes."""

    scheme: str
    recipe: str
    effort: str = "default"
    exported: bool = False

    @property
    def name(self) -> str:
        return "-".join((self.scheme, self.recipe, *([] if self.effort == "default" else [self.effort])))


ROWS = (
    Row("w8a8", "minmax"),
    Row("w8a8", "smoothquant"),
    Row("w8a8", "rotated"),
    Row("w8a8", "learned", exported=True),
    Row("w4a8", "minmax"),
    Row("w4a8", "smoothquant"),
    Row("w4a8", "omniquant"),
    Row("w4a8", "mobilequant"),
    Row("w4a8", "rotated"),
    Row("w4a8", "learned", exported=True),
    Row("w4a8", "learned", effort="best"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default=MODEL, help="a model folder; default: %(default)s")
    parser.add_argument("--name", default=None, help="of the model in the results; default: as --model")
    parser.add_argument("--windows", type=int, default=None, help="of each text; default: all")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="of the rows and peers; default: all")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args()
    names = [row.name for row in ROWS] + list(PEERS)
    only = names if options.only is None else options.only
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: not one of {', '.join(names)}")
    name = options.name or Path(options.model).name
    # Answers in a work folder go by the names of rows: every other model has a folder of its own.
    steps = Steps(options.work if options.model == MODEL else options.work / name)
    training = read_record(options.model)
    try:
        texts = text_files(options.data, steps.work, trained_here=training is not None)
    except InputError as error:
        raise SystemExit(str(error)) from error
    rows = [_row(steps, options.model, row, texts, options.windows) for row in ROWS if row.name in only]
    peers = [_peer(steps, options.model, name, texts, options.windows) for name in PEERS if name in only]
    floats = {
        text: steps.perplexity(options.model, f"float-{text}", "float", path, options.windows)["answer"]
        for text, path in texts.items()
    }
    for entry in rows + peers:
        for text, found in entry["texts"].items():
            found["ratio"] = found["perplexity"] / floats[text]["perplexity"]
    result = {
        "model": name,
        "window": WINDOW,
        "float": {text: {key: found[key] for key in KEPT if key in found} for text, found in floats.items()},
        "rows": rows,
        "peers": peers,
        "environment": environment(),
    }
    if training is not None:
        result["training"] = training
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"accuracy-{name}.json"
    write_json(path, result)
    path.with_suffix(".svg").write_text(draw(result), encoding="utf-8")
    print(f"wrote {path} and .svg")


def _row(steps: Steps, model: str, row: Row, texts: dict[str, Path], windows: int | None) -> dict[str, Any]:
    target = "host-cpu" if row.exported else INTEGER_ONLY
    arguments = ["--model", model, "--scheme", row.scheme, "--recipe", row.recipe, "--effort", row.effort]
    folder = steps.artifact(row.name)
    built = steps.ask(
        f"build-{row.name}", "quantize", *arguments, "--target", target, "--output", folder, "--overwrite"
    )
    entry: dict[str, Any] = {
        "scheme": row.scheme,
        "recipe": row.recipe,
        "effort": row.effort,
        "quantize_s": built["wall_s"],
        "quantize_peak_rss_bytes": built["peak_rss_bytes"],
        "texts": {name: _perplexity(steps, row, name, path, "simulator", windows) for name, path in texts.items()},
    }
    if row.exported:
        path = texts["wikitext2"]
        entry["runtimes"] = {
            backend: _perplexity(steps, row, "wikitext2", path, backend, windows) for backend in ("onnx", "executorch")
        }
    return entry


def _perplexity(steps: Steps, row: Row, text: str, path: Path, backend: str, windows: int | None) -> dict[str, Any]:
    found = steps.perplexity(steps.artifact(row.name), f"{row.name}-{text}", backend, path, windows)["answer"]
    return {key: found[key] for key in KEPT if key in found}


def _peer(steps: Steps, model: str, name: str, texts: dict[str, Path], windows: int | None) -> dict[str, Any]:
    found = {}
    for text, path in texts.items():
        command = [sys.executable, "-m", "benchmarks.accuracy.peers", name, "--model", model, "--text", str(path)]
        command += [] if windows is None else ["--windows", str(windows)]
        found[text] = steps.run(f"peer-{name}-{text}", command)["answer"]
    kept = {text: {key: one[key] for key in KEPT if key in one} for text, one in found.items()}
    return {"name": name, "scheme": PEERS[name].scheme, "quantize_s": found["wikitext2"]["quantize_s"], "texts": kept}


if __name__ == "__main__":
    main()
