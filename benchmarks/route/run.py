"""The main route on a real model, as a user runs it: quantise, verify, evaluate, bench; one JSON with everything.

    python -m benchmarks.route.run --work build/route --windows 80

Perplexity: WikiText-2 raw test, windows of 256 tokens, BOS (or the artifact's prefix) first. Calibration text is
written by the model itself: nothing here has seen WikiText. Every step is one command line; a finished step's answer
stays in the work folder and is not computed again. Speed is measured last, with nothing else running.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.route.figure import draw
from benchmarks.steps import INTEGER_ONLY, MODEL, WINDOW, Steps, write_result
from mobileicsa.bench.environment import environment

RESULT = "route-smollm2-135m"
MEASURED = ("perplexity", "windows", "tokens")


@dataclass(frozen=True)
class Build:
    """One artifact; the baselines need no runtime, their accuracy is the simulator's."""

    scheme: str
    recipe: str
    timed: bool = False

    @property
    def name(self) -> str:
        return f"{self.scheme}-{self.recipe}"


BUILDS = (
    Build("w8a8", "minmax"),
    Build("w8a8", "rotated", timed=True),
    Build("w4a8", "minmax"),
    Build("w4a8", "learned", timed=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=None, help="of the test text; default: all")
    parser.add_argument("--backend-windows", type=int, default=None, help="for the runtimes; default: as --windows")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args()
    text = options.data / "wikitext2" / "wiki.test.raw"
    if not text.is_file():
        raise SystemExit(f"{text}: no such file; set MOBILEICSA_DATA")
    steps = Steps(options.work)
    reference = steps.perplexity(MODEL, "float", "float", text, options.windows)["answer"]
    rows = [_row(steps, build, text, options, reference["perplexity"]) for build in BUILDS]
    for build, row in zip(BUILDS, rows, strict=True):
        if build.timed:
            row["bench"] = steps.ask(f"bench-{build.name}", "bench", steps.artifact(build.name), "--baseline", "float")[
                "answer"
            ]["backends"]
    result = {
        "model": MODEL,
        "text": "WikiText-2 raw test",
        "window": WINDOW,
        "windows": reference["windows"],
        "tokens": reference["tokens"],
        "bos": reference["bos"],
        "float_perplexity": reference["perplexity"],
        "rows": rows,
        "environment": environment(),
    }
    write_result(RESULT, result, draw(result))


def _build(steps: Steps, build: Build) -> dict[str, Any]:
    arguments = ["--model", MODEL, "--scheme", build.scheme, "--recipe", build.recipe, "--target", "host-cpu"]
    if build.timed:
        arguments += ["--target", INTEGER_ONLY]
    return steps.ask(
        f"build-{build.name}", "quantize", *arguments, "--output", steps.artifact(build.name), "--overwrite"
    )


def _row(
    steps: Steps, build: Build, text: Path, options: argparse.Namespace, float_perplexity: float
) -> dict[str, Any]:
    built = _build(steps, build)
    report = built["answer"]
    folder = steps.artifact(build.name)
    evaluated = steps.perplexity(folder, build.name, "simulator", text, options.windows)["answer"]
    row: dict[str, Any] = {
        "scheme": build.scheme,
        "recipe": build.recipe,
        "prefix": report["prefix"]["text"],
        "perplexity": evaluated["perplexity"],
        "ratio": evaluated["perplexity"] / float_perplexity,
        "quantize_s": built["wall_s"],
        "quantize_peak_rss_bytes": built["peak_rss_bytes"],
        "files": {name: made["files"] for name, made in report["targets"]["host-cpu"].items()},
        "pte_bytes_per_decoder_weight": _pte_bytes_per_weight(report),
    }
    if build.timed:
        verified = steps.ask(f"verify-{build.name}", "verify", folder, allowed=(0, 5))["answer"]
        row["verify"] = {name: _agreement(found) for name, found in verified["backends"].items()}
        row["verify_ok"] = verified["ok"]
        windows = options.backend_windows or options.windows
        for backend in ("onnx", "executorch"):
            measured = steps.perplexity(folder, build.name, backend, text, windows)["answer"]
            row[f"{backend}_perplexity"] = {key: measured[key] for key in MEASURED}
        primitive = steps.perplexity(folder, build.name, "simulator", text, windows, INTEGER_ONLY)["answer"]
        row["integer_only_perplexity"] = {key: primitive[key] for key in MEASURED}
    return row


def _agreement(found: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    kept |= {key: found[key] for key in ("equal_share", "max_steps", "calls", "identical_calls") if key in found}
    if "greedy" in found:
        kept["greedy"] = {key: found["greedy"][key] for key in ("token_agreement", "identical", "prompts")}
    if "exact" in found:
        kept["exact"] = _agreement(found["exact"])
    return kept


def _pte_bytes_per_weight(report: dict[str, Any]) -> float:
    """All of model.pte but one int8 copy of the vocabulary table, over the linear weights inside decoder layers."""
    model = report["model"]
    table = model["parameters"] - model["decoder_weights"]
    file: int = report["targets"]["host-cpu"]["executorch"]["files"]["model.pte"]
    share: float = (file - table) / model["decoder_weights"]
    return share


if __name__ == "__main__":
    main()
