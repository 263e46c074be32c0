"""Peak memory of learning a model of 1.2 billion parameters, and how long its default recipe would take.

    python -m benchmarks.memory.run --work build/memory

Random weights in the shape of Llama 3.2 1B: memory and time depend on shapes only. Rotation and both learning stages of
`learned` run, on few windows of full length and for few steps; the searches for a prefix, for scalings and for codes do
not: they hold less than learning and are long. The time of the whole recipe is extrapolated by the plan's own estimate
of both runs; the peak is that of the process, which more windows raise by their hidden states (stated beside it).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.accuracy.texts import calibration_file
from benchmarks.steps import INTEGER_ONLY, MODEL, RESULTS, Steps
from mobileicsa.bench.environment import environment
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.json_file import write_json

SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEED = 0
RECIPE = ("learned", "learn.1.save_memory=true")
FEW = ("calibration.samples=4", "calibration.learning_samples=12", "calibration.written=0.0")
FEW_STEPS = ("prefix_tokens=0", "smoothing=off", "weights=clip", "learn.0.steps=2", "learn.1.steps=4")
HIDDEN_BYTES_A_WINDOW = 3 * 256 * SHAPE["hidden_size"] * 4  # float, target and quantised stream  # type: ignore[operator]


def make_model(folder: Path) -> int:
    """A checkpoint of SHAPE with random bfloat16 weights and SmolLM2's tokenizer; its number of parameters."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    model.save_pretrained(folder)
    open_checkpoint(MODEL).write_tokenizer(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOBILEICSA_DATA", "../shared/data")))
    options = parser.parse_args()
    steps = Steps(options.work)
    folder, count = options.work / "model", options.work / "parameters.json"
    if not count.is_file():
        write_json(count, make_model(folder))
    given = ["--model", str(folder), "--scheme", "w4a8", "--target", INTEGER_ONLY, "--recipe", *RECIPE]
    output = ["--output", steps.artifact("artifact"), "--overwrite"]
    few = [*given, *FEW, *FEW_STEPS, "--calibration", str(calibration_file(options.data, options.work)), *output]
    whole, part = (_estimates(steps, name, asked) for name, asked in (("whole", [*given, *output]), ("part", few)))
    built = steps.ask("build", "quantize", *few)
    result = {
        "shape": SHAPE,
        "parameters": json.loads(count.read_text()),
        "recipe": [*RECIPE, *FEW, *FEW_STEPS],
        "peak_rss_bytes": built["peak_rss_bytes"],
        "predicted_peak_bytes": part["peak_memory_bytes"],
        "predicted_peak_of_the_whole_recipe_bytes": whole["peak_memory_bytes"],
        "hidden_bytes_a_window": HIDDEN_BYTES_A_WINDOW,
        "seconds": built["wall_s"],
        "seconds_of_the_whole_recipe_extrapolated": round(
            built["wall_s"] * whole["seconds_on_two_cores"] / part["seconds_on_two_cores"]
        ),
        "stages": built["answer"]["stages"],
        "environment": environment(),
    }
    write_json(RESULTS / "memory-1b.json", result)
    print(f"wrote {RESULTS / 'memory-1b.json'}")


def _estimates(steps: Steps, name: str, asked: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = steps.ask(f"plan-{name}", "quantize", *asked, "--dry-run")["answer"]
    estimates: dict[str, Any] = answer["estimates"]
    return estimates


if __name__ == "__main__":
    main()
