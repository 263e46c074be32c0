"""What each part of MobileQuant and of our recipe is worth: single parts off, everything else the same.

    python -m benchmarks.accuracy.ablation --work build/accuracy --windows 80 --model build/trained --name small-llama

On SmolLM2-135M (the default model) the grid takes about six hours on two cores, on the small model one. Texts and
windows are those of benchmarks.accuracy.run; a finished step's answer stays in the work folder.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

from benchmarks.accuracy.ablation_figure import draw
from benchmarks.accuracy.texts import text_files
from benchmarks.accuracy.variants import VARIANTS, Variant, slug, write_recipe
from benchmarks.small_model.record import read_record
from benchmarks.steps import INTEGER_ONLY, MODEL, RESULTS, WINDOW, Steps
from mobileicsa.bench.environment import environment
from mobileicsa.core.errors import InputError
from mobileicsa.io.json_file import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default=MODEL, help="a model folder; default: %(default)s")
    parser.add_argument("--name", default=None, help="of the model in the results; default: as --model")
    parser.add_argument("--windows", type=int, default=None, help="of each text; default: all")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args()
    name = options.name or Path(options.model).name
    steps = Steps(options.work if options.model == MODEL else options.work / name)
    try:
        texts = text_files(options.data, steps.work, trained_here=read_record(options.model) is not None)
    except InputError as error:
        raise SystemExit(str(error)) from error
    floats = {
        text: steps.perplexity(options.model, f"float-{text}", "float", path, options.windows)["answer"]["perplexity"]
        for text, path in texts.items()
    }
    rows = [_row(steps, options.model, variant, texts, floats, options.windows) for variant in VARIANTS]
    result = {"model": name, "window": WINDOW, "float": floats, "rows": rows, "environment": environment()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"ablation-{name}.json"
    write_json(path, result)
    path.with_suffix(".svg").write_text(draw(result), encoding="utf-8")
    print(f"wrote {path} and .svg")


def _row(
    steps: Steps, model: str, variant: Variant, texts: dict[str, Path], floats: dict[str, float], windows: int | None
) -> dict[str, Any]:
    name = f"ablation-{slug(variant)}"
    recipe = write_recipe(variant, steps.work / "recipes")
    folder = steps.artifact(name)
    arguments = ["--model", model, "--scheme", variant.scheme, "--recipe", str(recipe), "--target", INTEGER_ONLY]
    built = steps.ask(f"build-{name}", "quantize", *arguments, "--output", folder, "--overwrite")
    found = {}
    for text, path in texts.items():
        perplexity = steps.perplexity(folder, f"{name}-{text}", "simulator", path, windows)["answer"]["perplexity"]
        found[text] = {"perplexity": perplexity, "ratio": perplexity / floats[text]}
    mean = math.exp(sum(math.log(one["ratio"]) for one in found.values()) / len(found))
    return {
        "name": variant.name,
        "recipe": variant.recipe,
        "changes": variant.changes,
        "quantize_s": built["wall_s"],
        "texts": found,
        "ratio": mean,
    }


if __name__ == "__main__":
    main()
