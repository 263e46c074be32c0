"""Whole artifacts on every engine: integers and perplexity beside the simulator's of the same program.

    python -m benchmarks.targets.whole --work build/engines --artifact out --name smollm2-135m-w8a8 --text test.txt

What an engine lowers is kept in the cache of `mobileicsa verify`, its answers in the work folder. Results of artifacts
with other names stay. Some engines are slow: HTP's emulator and TOSA's reference model take minutes a window.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.steps import RESULTS, WINDOW, Steps, read_result
from mobileicsa.bench.environment import environment
from mobileicsa.core.errors import EnvironmentFault, VerificationError
from mobileicsa.io.json_file import write_json
from mobileicsa.program.targets import DEFAULT_TARGET, target_of_backend

RESULT = RESULTS / "engines.json"
# Engine -> its target; None: the back end's own.
ENGINES = {"onnx": DEFAULT_TARGET, "executorch": DEFAULT_TARGET, "openvino": None, "qnn-htp": None, "tosa": None}
KEPT = ("equal_share", "max_steps", "top1_agreement", "calls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the artifact in the results")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    options = parser.parse_args()
    steps = Steps(options.work / options.name)
    before = read_result(RESULT.stem) or {"artifacts": {}}
    row = {"windows": options.windows, "text": options.text.name, "engines": {}}
    row = before["artifacts"].get(options.name, row)
    for engine in options.only:
        row["engines"][engine] = _measure(steps, options, engine)
        print(engine, row["engines"][engine], flush=True)
    write_json(
        RESULT,
        {"artifacts": {**before["artifacts"], options.name: row}, "window": WINDOW, "environment": environment()},
    )


def _measure(steps: Steps, options: argparse.Namespace, engine: str) -> dict[str, Any]:
    target = ENGINES[engine] or target_of_backend(engine).name
    folder = str(options.artifact)
    verified = steps.ask(
        f"verify-{engine}",
        *("verify", folder, "--backend", engine, "--target", target, "--no-greedy", "--no-save"),
        allowed=(0, VerificationError.exit_code, EnvironmentFault.exit_code),
    )["answer"]["backends"][engine]
    if "skipped" in verified or "error" in verified:
        return {"reason": verified.get("skipped") or verified["error"]}
    found = {key: verified[key] for key in KEPT} | {"first_layer_equal": verified["first_layer"]["equal_share"]}
    for name, backend in (("perplexity", engine), ("simulator_perplexity", "simulator")):
        answer = steps.ask(
            f"eval-{engine}-{backend}",
            *("eval", "--model", folder, "--backend", backend, "--target", target, "--text", str(options.text)),
            *("--window", str(WINDOW), "--max-windows", str(options.windows), "--no-save"),
        )["answer"]
        found[name] = answer["perplexity"]
    return {"target": target, **found}


if __name__ == "__main__":
    main()
