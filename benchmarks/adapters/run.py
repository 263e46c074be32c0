"""`python -m benchmarks.adapters.run --model DIR --work DIR`: what swappable adapters cost beside merged ones.

The work folder holds what `benchmarks.adapters.train` made. Perplexities are of held-out text; speeds are of this
machine, all taken in one run, so that only their ratios mean something elsewhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.adapters.texts import NAMES
from benchmarks.adapters.train import RANK, STEPS
from benchmarks.steps import RESULTS, Steps
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.bench.environment import environment
from mobileicsa.io.json_file import read_json, write_json

BACKENDS = ("onnx", "executorch")
SWAPS, TOKENS, ROUNDS = 20, 48, 3


def quantised(steps: Steps, model: str, scheme: str, recipe: str) -> dict[str, str]:
    """Artifacts by what they are: the base alone, the base with both adapters, each adapter merged."""
    calibration = steps.work / "texts" / "both.txt"
    if not calibration.is_file():
        parts = [(steps.work / "texts" / f"{name}.txt").read_text(encoding="utf-8") for name in NAMES]
        calibration.write_text("\n".join(parts), encoding="utf-8")
    folders = [str(steps.work / "adapters" / name) for name in NAMES]
    given = {
        "base": [],
        "swappable": [part for folder in folders for part in ("--adapter", folder)],
        **{f"merged-{n}": ["--merge-adapter", f] for n, f in zip(NAMES, folders, strict=True)},
    }
    made = {}
    for name, arguments in given.items():
        made[name] = steps.artifact(f"{scheme}-{name}")
        common = ["--model", model, "--scheme", scheme, "--recipe", recipe, "--calibration", str(calibration)]
        steps.ask(f"quantize-{scheme}-{name}", "quantize", *common, "--output", made[name], "--overwrite", *arguments)
    return made


def perplexities(steps: Steps, model: str, scheme: str, made: dict[str, str], windows: int) -> dict[str, Any]:
    """By text: float and integer, the base, the adapter beside it, the adapter merged."""
    found: dict[str, Any] = {}
    for text in NAMES:
        path = str(steps.work / "texts" / f"{text}-held-out.txt")
        common = ["--text", path, "--max-windows", str(windows), "--window", "128", "--no-save"]

        def measured(name: str, *arguments: str, common: list[str] = common, text: str = text) -> float:
            answer = steps.ask(f"eval-{scheme}-{text}-{name}", "eval", *common, *arguments)
            value: float = answer["answer"]["perplexity"]
            return round(value, 3)

        float_folder = str(steps.work / "float" / text)
        found[text] = {
            "float_base": measured("float-base", "--model", model),
            "float_adapter": measured("float-adapter", "--model", float_folder),
            "integer_base": measured("base", "--model", made["base"]),
            "integer_swappable": measured("swappable", "--model", made["swappable"], "--adapter", text),
            "integer_swappable_onnx": measured(
                "swappable-onnx", "--model", made["swappable"], "--adapter", text, "--backend", "onnx"
            ),
            "integer_merged": measured("merged", "--model", made[f"merged-{text}"]),
        }
    return found


def _bytes(folder: str, backend: str) -> dict[str, int]:
    report = read_json(Path(folder) / "report.json", max_bytes=256 << 20)
    files: dict[str, int] = report["targets"]["host-cpu"][backend]["files"]
    kept = {name: count for name, count in files.items() if not name.startswith("encodings")}
    adapters = sum(count for name, count in kept.items() if name.startswith("adapters/"))
    return {"program": sum(kept.values()) - adapters, "adapters": adapters}


def speeds(made: dict[str, str], backend: str) -> dict[str, Any]:
    """Decode tokens a second, and what it takes to change the adapter: beside the base, or by another program."""
    swappable = QuantizedModel.from_pretrained(made["swappable"], backend=backend, threads=1)
    runs: dict[str, Callable[[], None]] = {"base_program": lambda: None}
    models = {"base_program": QuantizedModel.from_pretrained(made["base"], backend=backend, threads=1)}
    for name, adapter in (("no_adapter", None), *((n, n) for n in NAMES)):
        models[name] = swappable
        runs[name] = lambda adapter=adapter: swappable.use_adapter(adapter)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, prepare in runs.items():
            prepare()
            result = models[name].generate("The", max_new_tokens=TOKENS)
            rates[name].append(result.decode_tokens_per_s or 0.0)
    changes = []
    for index in range(SWAPS):
        start = time.perf_counter()
        swappable.use_adapter(NAMES[index % 2])
        changes.append(time.perf_counter() - start)
    opened = []
    for name in NAMES:
        start = time.perf_counter()
        model = QuantizedModel.from_pretrained(made[f"merged-{name}"], backend=backend, threads=1)
        opened.append(time.perf_counter() - start)
        model.close()
    return {
        "decode_tokens_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "swap_ms": round(1000 * median(changes), 3),
        "open_merged_ms": round(1000 * median(opened), 1),
        "bytes": {name: _bytes(folder, backend) for name, folder in made.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scheme", default="w4a8")
    parser.add_argument("--recipe", default="prefix")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--name", default="small-llama")
    given = parser.parse_args()
    steps = Steps(given.work)
    made = quantised(steps, given.model, given.scheme, given.recipe)
    report = read_json(Path(made["swappable"]) / "report.json", max_bytes=256 << 20)
    verified = {
        name: steps.ask(f"verify-{given.scheme}-{name}", "verify", made["swappable"], "--adapter", name)["answer"]
        for name in NAMES
    }
    rows = {name: answer["backends"] for name, answer in verified.items()}
    result = {
        "model": given.name,
        "scheme": given.scheme,
        "recipe": given.recipe,
        "adapters": {"rank": RANK, "steps": STEPS, "texts": list(NAMES)},
        "perplexity": perplexities(steps, given.model, given.scheme, made, given.windows),
        "saturation": {name: facts["saturation"] for name, facts in report["adapters"].items()},
        "verified": {
            name: {backend: {"equal_share": row["equal_share"], "swap": row["swap"]} for backend, row in found.items()}
            for name, found in rows.items()
        },
        "engines": {backend: speeds(made, backend) for backend in BACKENDS},
        "environment": environment(),
    }
    write_json(RESULTS / f"adapters-{given.name}-{given.scheme}.json", result)
    print(f"wrote adapters-{given.name}-{given.scheme}.json")


if __name__ == "__main__":
    main()
