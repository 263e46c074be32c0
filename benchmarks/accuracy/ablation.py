"""What each part of MobileQuant and of our recipe is worth: single parts off, everything else the same.

    python -m benchmarks.accuracy.ablation --work build/accuracy --windows 80 --model build/trained --name small-llama

On SmolLM2-135M (the default model) the grid takes about ten hours on two cores, on the small model two. Texts and
windows are those of benchmarks.accuracy.run; a finished step's answer stays in the work folder.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from benchmarks.accuracy.ablation_figure import draw
from benchmarks.accuracy.subject import Subject, add_options, subject
from benchmarks.accuracy.variants import VARIANTS, Variant, slug, write_recipe
from benchmarks.steps import WINDOW, write_result
from mobileicsa.bench.environment import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    of = subject(parser.parse_args())
    floats = {text: answer["perplexity"] for text, answer in of.floats().items()}
    rows = [_row(of, variant, floats) for variant in VARIANTS]
    result = {"model": of.name, "window": WINDOW, "float": floats, "rows": rows, "environment": environment()}
    write_result(f"ablation-{of.name}", result, draw(result))


def _row(of: Subject, variant: Variant, floats: dict[str, float]) -> dict[str, Any]:
    name = f"ablation-{slug(variant)}"
    recipe = write_recipe(variant, of.steps.work / "recipes")
    folder = of.steps.artifact(name)
    arguments = ["--model", of.model, "--scheme", variant.scheme, "--recipe", str(recipe)]
    built = of.steps.ask(f"build-{name}", "quantize", *arguments, "--output", folder, "--overwrite")
    found = {}
    for text in of.texts:
        perplexity = of.perplexity(folder, name, "simulator", text)["perplexity"]
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
