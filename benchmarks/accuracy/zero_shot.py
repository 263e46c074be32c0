"""Zero-shot accuracy of the float model and of the artifacts that benchmarks.accuracy.run left in the work folder.

    python -m benchmarks.accuracy.zero_shot --work build/accuracy --limit 2000

LAMBADA, ARC easy and challenge, HellaSwag, PIQA and WinoGrande as lm-eval asks and scores them (tasks/, questions.py),
artifacts on the simulator. Every model answers the same questions, so that the difference to float is paired: only
questions answered differently add to its error, which is the smaller the closer a model is to float. With 2,000
questions of each task (three tasks have fewer) it is 0.3 to 0.4 points and takes most of an hour a model on one core.
A finished model's answers stay in the work folder and are not asked for again. Needs mobileicsa[eval].
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy.other_rows import joined, refuse_other, refuse_other_float
from benchmarks.accuracy.paired import Estimate, difference, estimate, over_tasks
from benchmarks.accuracy.questions import TASKS
from benchmarks.accuracy.run import ROWS, Row, name_of
from benchmarks.accuracy.zero_shot_figure import draw
from benchmarks.steps import MODEL, Steps, read_result, write_result
from mobileicsa.artifact.model import is_artifact
from mobileicsa.bench.environment import environment

RESULT = "zero-shot-smollm2-135m"
METRICS = ("acc", "acc_norm")
# Share of float's right answers that another CPU may give otherwise: a few of hundreds.
FLOAT_TOLERANCE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="that of benchmarks.accuracy.run")
    parser.add_argument("--limit", type=int, required=True, help="questions of each task, at least 2")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="of the rows, the result's others stay")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args()
    if options.limit < 2:
        raise SystemExit(f"--limit {options.limit}: a standard error needs at least 2 questions of each task")
    if not options.data.is_dir():
        raise SystemExit(f"{options.data}: no such folder; set MOBILEICSA_DATA")
    steps = Steps(options.work)
    rows = _chosen(steps, options.only)
    earlier = None if options.only is None else read_result(RESULT)
    if earlier is not None:
        refuse_other({"model": MODEL, "limit": options.limit}, earlier, ("model", "limit"))
    reference = _answers(steps, "float", MODEL, "float", options)
    result: dict[str, Any] = {
        "model": MODEL,
        "limit": options.limit,
        "seed": reference["seed"],
        "lm_eval": reference["lm_eval"],
        "float": summary(reference["tasks"], None, "float"),
        "rows": [],
        "environment": environment(),
    }
    if earlier is not None:
        refuse_other(result, earlier, ("seed", "lm_eval"))
        refuse_other_float(_floats(result), _floats(earlier), FLOAT_TOLERANCE)
    asked = {row: _answers(steps, row.name, steps.artifact(row.name), "simulator", options) for row in rows}
    found = [{**row.facts(), **summary(of["tasks"], reference["tasks"], row.name)} for row, of in asked.items()]
    if earlier is not None:
        found = joined(found, earlier["rows"], [row.name for row in ROWS], name_of)
        result |= {"float": earlier["float"], "environment": earlier["environment"]}
    result["rows"] = found
    write_result(RESULT, result, draw(result))


def _floats(result: dict[str, Any]) -> dict[str, float]:
    return {task: one["acc"]["value"] for task, one in result["float"]["tasks"].items()}


def _chosen(steps: Steps, only: list[str] | None) -> list[Row]:
    names = [row.name for row in ROWS]
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: not one of {', '.join(names)}")
    rows = [row for row in ROWS if only is None or row.name in only]
    missing = [row.name for row in rows if not is_artifact(steps.artifact(row.name))]
    if missing:
        raise SystemExit(
            f"{steps.artifact(missing[0])}: no artifact ({len(missing)} of {len(rows)} are missing); "
            "run benchmarks.accuracy.run first, or name those that are there with --only"
        )
    return rows


def _answers(steps: Steps, name: str, model: str, backend: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.accuracy.questions", model, "--backend", backend]
    command += ["--limit", str(options.limit), "--data", str(options.data)]
    answer: dict[str, Any] = steps.run(f"zero-shot-{name}-{options.limit}", command)["answer"]
    return answer


def summary(tasks: dict[str, Any], reference: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """Per task n, acc, acc_norm (where defined) and LAMBADA's perplexity; the tasks' mean; differences to `reference`.

    `tasks` and `reference` are answers of questions.py. The mean takes acc_norm where it is defined, else acc.
    """
    found: dict[str, Any] = {}
    scores: list[Estimate] = []
    differences: list[Estimate] = []
    for task in TASKS:
        one = tasks[task]
        if reference is not None and one["questions"] != reference[task]["questions"]:
            raise SystemExit(f"{name}, {task}: other questions than the float model's; delete the older answer")
        entry: dict[str, Any] = {"n": len(one["rows"])}
        metrics = [metric for metric in METRICS if metric in one]
        for metric in metrics:
            score = estimate(one[metric])
            change = None if reference is None else difference(one[metric], reference[task][metric])
            entry[metric] = _entry(score, change)
        scores.append(score)
        if change is not None:
            differences.append(change)
        if "log_likelihood" in one:
            entry["perplexity"] = math.exp(-estimate(one["log_likelihood"]).mean)
        found[task] = entry
    return {"tasks": found, "mean": _entry(over_tasks(scores), over_tasks(differences) if differences else None)}


def _entry(score: Estimate, change: Estimate | None) -> dict[str, float]:
    entry = {"value": score.mean, "stderr": score.stderr}
    return entry if change is None else entry | {"difference": change.mean, "difference_stderr": change.stderr}


if __name__ == "__main__":
    main()
