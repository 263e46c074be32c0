"""`python -m benchmarks.adapters.run --model DIR --work DIR`: what swappable adapters cost beside merged ones.

The work folder holds what `benchmarks.adapters.train` made; artifacts in it are not made again. Perplexities are of
held-out text; speeds are of this machine, all taken in one run, so that only their ratios mean something elsewhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.adapters.texts import NAMES
from benchmarks.adapters.train import RANK, STEPS
from benchmarks.steps import INTEGER_ONLY, RESULTS
from mobileicsa import api
from mobileicsa.artifact.float_model import FloatModel
from mobileicsa.artifact.lowered import open_for
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.artifact.verify import verify
from mobileicsa.bench.environment import environment
from mobileicsa.evaluate.perplexity import evaluate
from mobileicsa.io.json_file import read_json, write_json
from mobileicsa.quantize.steps import Quiet

BACKENDS = ("onnx", "executorch")
WINDOW, SWAPS, TOKENS, ROUNDS = 128, 20, 48, 3

Report = dict[str, Any]


def quantised(work: Path, model: str, scheme: str, recipe: str, overrides: list[str]) -> dict[str, Path]:
    """Artifacts by what they are: the base alone, the base with both adapters, each adapter merged."""
    calibration = work / "texts" / "both.txt"
    parts = [(work / "texts" / f"{name}.txt").read_text(encoding="utf-8") for name in NAMES]
    calibration.write_text("\n".join(parts), encoding="utf-8")
    folders = {name: work / "adapters" / name for name in NAMES}
    wanted: dict[str, dict[str, Any]] = {
        "base": {},
        "swappable": {"adapters": list(folders.values())},
        **{f"merged-{name}": {"merge_adapter": folder} for name, folder in folders.items()},
    }
    made = {}
    for name, options in wanted.items():
        made[name] = work / f"{scheme}-{name}"
        if not made[name].is_dir():
            print(f"quantise {name}", flush=True)
            common: dict[str, Any] = {"recipe": recipe, "overrides": overrides, "calibration": calibration}
            api.quantize(model, scheme, made[name], **common, **options)
    return made


def perplexities(work: Path, model: str, made: dict[str, Path], windows: int) -> Report:
    """By text: float and integer; the base, the adapter beside it (float and int8), the adapter merged."""
    base, both = str(made["base"]), str(made["swappable"])
    found: Report = {}
    for text in NAMES:
        content = (work / "texts" / f"{text}-held-out.txt").read_text(encoding="utf-8")
        integers = partial(open_for, progress=Quiet())
        opened: dict[str, Callable[[], Any]] = {
            "float_base": partial(FloatModel.from_pretrained, model),
            "float_adapter": partial(FloatModel.from_pretrained, work / "float" / text),
            "integer_base": partial(integers, base, None),
            "integer_swappable": partial(integers, both, None, adapter=text),
            "integer_swappable_onnx": partial(integers, both, "onnx", adapter=text, threads=1),
            "integer_merged": partial(integers, str(made[f"merged-{text}"]), None),
            "integer_only_base": partial(integers, base, None, target=INTEGER_ONLY),
            "integer_only_swappable": partial(integers, both, None, target=INTEGER_ONLY, adapter=text),
        }
        found[text] = {}
        for name, open_it in opened.items():
            measured = evaluate(open_it(), content, window=WINDOW, max_windows=windows)
            found[text][name] = round(measured["perplexity"], 3)
            print(f"{text}, {name}: {found[text][name]}", flush=True)
    return found


def _bytes(folder: Path, backend: str) -> dict[str, int]:
    files: dict[str, int] = _report(folder)["targets"]["host-cpu"][backend]["files"]
    kept = {name: count for name, count in files.items() if not name.startswith("encodings")}
    adapters = sum(count for name, count in kept.items() if name.startswith("adapters/"))
    return {"program": sum(kept.values()) - adapters, "adapters": adapters}


def _report(folder: Path) -> Report:
    return read_json(folder / "report.json", max_bytes=256 << 20)


def speeds(made: dict[str, Path], backend: str) -> Report:
    """Decode tokens a second, and what it takes to change the adapter: beside the base, or by another program."""
    swappable = QuantizedModel.from_pretrained(made["swappable"], backend=backend, threads=1)
    models = {"base_program": QuantizedModel.from_pretrained(made["base"], backend=backend, threads=1)}
    models |= dict.fromkeys(("no_adapter", *NAMES), swappable)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            model.use_adapter(name if name in NAMES else None)
            rates[name].append(model.generate("The", max_new_tokens=TOKENS).decode_tokens_per_s or 0.0)
    changes = []
    for index in range(SWAPS):
        start = time.perf_counter()
        swappable.use_adapter(NAMES[index % 2])
        changes.append(time.perf_counter() - start)
    opened = []
    for name in NAMES:
        start = time.perf_counter()
        QuantizedModel.from_pretrained(made[f"merged-{name}"], backend=backend, threads=1).close()
        opened.append(time.perf_counter() - start)
    return {
        "decode_tokens_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "swap_ms": round(1000 * median(changes), 3),
        "open_merged_ms": round(1000 * median(opened), 1),
        "bytes": {name: _bytes(folder, backend) for name, folder in made.items()},
    }


def verified(folder: Path) -> Report:
    """Agreement with the simulator, and whether an adapter computes the same after others as before."""
    found: Report = {}
    for name in NAMES:
        rows = verify(folder, adapter=name, greedy=False, only=BACKENDS)["backends"]
        found[name] = {
            backend: {key: row[key] for key in ("equal_share", "max_steps", "top1_agreement", "swap")}
            for backend, row in rows.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scheme", default="w4a8")
    parser.add_argument("--recipe", default="prefix")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--name", default="small-llama")
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, KEY=VALUE")
    given = parser.parse_args()
    made = quantised(given.work, given.model, given.scheme, given.recipe, given.overrides)
    result = {
        "model": given.name,
        "scheme": given.scheme,
        "recipe": given.recipe,
        "overrides": given.overrides,
        "adapters": {"rank": RANK, "steps": STEPS, "texts": list(NAMES)},
        "saturation": {name: facts["saturation"] for name, facts in _report(made["swappable"])["adapters"].items()},
        "engines": {backend: speeds(made, backend) for backend in BACKENDS},
        "verified": verified(made["swappable"]),
        "perplexity": perplexities(given.work, given.model, made, given.windows),
        "environment": environment(),
    }
    write_json(RESULTS / f"adapters-{given.name}-{given.scheme}.json", result)
    print(f"wrote adapters-{given.name}-{given.scheme}.json")


if __name__ == "__main__":
    main()
