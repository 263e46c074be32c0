"""Accuracy of every recipe, and of peers, on a real model: same text, same windows, same scored tokens.

    python -m benchmarks.accuracy.run --work build/accuracy --windows 80
    python -m benchmarks.accuracy.run --work build/accuracy --windows 80 --model build/small --name small-llama

The second is for a model of benchmarks/small_model; its results have a file of their own.
WikiText-2 raw test and Tiny Shakespeare, windows of 256 tokens, BOS (or the artifact's prefix) first. Nothing here
has seen either (texts.py): calibration and learning use text that the model writes itself; rows named `-text` use
WikiText-2's validation split beside that. A finished step's answer stays in the work folder and is not computed again:
after a change of the package or of a recipe begin a new folder.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy.figure import draw
from benchmarks.accuracy.other_rows import joined, machine, refuse_other, refuse_other_float
from benchmarks.accuracy.peers import PEERS
from benchmarks.accuracy.subject import Subject, add_options, subject
from benchmarks.accuracy.texts import CALIBRATION, calibration_file
from benchmarks.steps import WINDOW, read_result, write_result
from mobileicsa.bench.environment import environment

# What rows of one table share.
SAME = ("model", "window")
FLOAT_TOLERANCE = 1e-3
KEPT = ("perplexity", "ratio", "kl_to_reference", "top1_agreement", "windows", "tokens")


@dataclass(frozen=True)
class Row:
    """One artifact, of the host CPU: norms that are encoded inside, too, do not bear baselines' massive activations.

    `exported`: measured on its runtimes too; `calibrated`: given a text.
    """

    scheme: str
    recipe: str
    effort: str = "default"
    exported: bool = False
    calibrated: bool = False

    @property
    def name(self) -> str:
        effort = [] if self.effort == "default" else [self.effort]
        return "-".join((self.scheme, self.recipe, *effort, *(["text"] if self.calibrated else [])))

    def facts(self) -> dict[str, Any]:
        """What the results say of every row."""
        calibration = CALIBRATION if self.calibrated else None
        return {"scheme": self.scheme, "recipe": self.recipe, "effort": self.effort, "calibration": calibration}


ROWS = (
    Row("w8a8", "minmax"),
    Row("w8a8", "smoothquant"),
    Row("w8a8", "rotated"),
    Row("w8a8", "learned", exported=True),
    Row("w8a8", "learned", exported=True, calibrated=True),
    Row("w4a8", "minmax"),
    Row("w4a8", "smoothquant"),
    Row("w4a8", "omniquant"),
    Row("w4a8", "mobilequant"),
    Row("w4a8", "rotated"),
    Row("w4a8", "learned", effort="fast"),
    Row("w4a8", "learned", exported=True),
    Row("w4a8", "learned", exported=True, calibrated=True),
    Row("w4a8", "learned", effort="best"),
    Row("w4a8", "learned", effort="best", calibrated=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument(
        "--only", nargs="*", default=None, metavar="NAME", help="of the rows and peers, the result's others stay"
    )
    options = parser.parse_args()
    names = [row.name for row in ROWS] + list(PEERS)
    only = names if options.only is None else options.only
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: not one of {', '.join(names)}")
    of = subject(options)
    stem = f"accuracy-{of.name}"
    floats = of.floats()
    result: dict[str, Any] = {
        "model": of.name,
        "window": WINDOW,
        "float": {text: _kept(found) for text, found in floats.items()},
        "rows": [],
        "peers": [],
        "environment": environment(),
    }
    if of.training is not None:
        result["training"] = of.training
    earlier = None if options.only is None else read_result(stem)
    if earlier is not None:
        refuse_other(result, earlier, SAME)
        refuse_other_float(_floats(result), _floats(earlier), FLOAT_TOLERANCE)
    rows = [_row(of, row) for row in ROWS if row.name in only]
    peers = [_peer(of, name) for name in PEERS if name in only]
    table = (earlier or result)["environment"]
    for entry in rows + peers:
        entry |= machine(entry.pop("made_on"), table)
        for text, found in entry["texts"].items():
            found["ratio"] = found["perplexity"] / floats[text]["perplexity"]
    if earlier is not None:
        result |= {"float": earlier["float"], "environment": earlier["environment"]}
        rows = joined(rows, earlier["rows"], [row.name for row in ROWS], name_of)
        peers = joined(peers, earlier["peers"], list(PEERS), lambda peer: str(peer["name"]))
    result |= {"rows": rows, "peers": peers}
    write_result(stem, result, draw(result))


def name_of(row: dict[str, Any]) -> str:
    """The name of a result's row."""
    return Row(row["scheme"], row["recipe"], row["effort"], calibrated=row["calibration"] is not None).name


def _floats(result: dict[str, Any]) -> dict[str, float]:
    texts = result["float"].items()
    return {f"{what} on {text}": found[what] for text, found in texts for what in ("tokens", "perplexity")}


def _row(of: Subject, row: Row) -> dict[str, Any]:
    arguments = ["--model", of.model, "--scheme", row.scheme, "--recipe", row.recipe, "--effort", row.effort]
    if row.calibrated:
        arguments += ["--calibration", str(calibration_file(of.data, of.steps.work))]
    folder = of.steps.artifact(row.name)
    built = of.steps.ask(f"build-{row.name}", "quantize", *arguments, "--output", folder, "--overwrite")
    entry: dict[str, Any] = {
        **row.facts(),
        "learned_on": sorted({stage["device"] for stage in built["answer"]["learning"] or ()}),
        "quantize_s": built["wall_s"],
        "quantize_peak_rss_bytes": built["peak_rss_bytes"],
        "made_on": built["made_on"],
        "texts": {text: _kept(of.perplexity(folder, row.name, "simulator", text)) for text in of.texts},
    }
    if row.exported:
        entry["runtimes"] = {
            backend: _kept(of.perplexity(folder, row.name, backend, "wikitext2")) for backend in ("onnx", "executorch")
        }
    return entry


def _kept(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: answer[key] for key in KEPT if key in answer}


def _peer(of: Subject, name: str) -> dict[str, Any]:
    found = {}
    for text, path in of.texts.items():
        command = [sys.executable, "-m", "benchmarks.accuracy.peers", name, "--model", of.model, "--text", str(path)]
        command += [] if of.windows is None else ["--windows", str(of.windows)]
        found[text] = of.steps.run(f"peer-{name}-{text}", command)
    return {
        "name": name,
        "scheme": PEERS[name].scheme,
        "quantize_s": found["wikitext2"]["answer"]["quantize_s"],
        "made_on": found["wikitext2"]["made_on"],
        "texts": {text: _kept(one["answer"]) for text, one in found.items()},
    }


if __name__ == "__main__":
    main()
