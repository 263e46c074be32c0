"""How long a build's steps take: seconds on two cores, measured on SmolLM2-135M, scaled by what each depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobileicsa.quantize.block import feeds_back
from mobileicsa.quantize.distill import held_out
from mobileicsa.quantize.prefix import race_length
from mobileicsa.quantize.recipe import windows_of
from mobileicsa.quantize.rotation_learning import STEPS, windows_seen
from mobileicsa.quantize.sensitivity import WINDOWS

if TYPE_CHECKING:
    from mobileicsa.artifact.plan_build import BuildPlan

MEASURED_WEIGHTS, MEASURED_TOKENS = 106e6, 8192  # decoder weights; calibration tokens of the default
# Of a window of 256 tokens through the float model; forward and back through the student.
FORWARD, BLOCK_STEP, MODEL_STEP = 0.33, 1.5, 1.1
# A back end's own start, and what a model of the measured size adds; the others lower as ONNX does.
EXECUTORCH, OTHERS = (20.0, 140.0), (20.0, 45.0)


def expected_seconds(plan: BuildPlan) -> list[tuple[str, float]]:
    """Steps by the titles under which they report progress, in order."""
    amount = plan.recipe.calibration
    tokens = amount.samples * amount.length / MEASURED_TOKENS
    weights = plan.spec.decoder_weight_count / MEASURED_WEIGHTS
    windows = windows_of(plan.recipe)
    written = plan.written_windows
    steps = [("calibration text", (30.0 + 0.6 * written) * weights if written else 0.1)]
    if plan.recipe.prefix_tokens:
        steps.append(("sink prefix", 0.55 * weights * race_length(windows, plan.recipe.prefix_tokens)))
    if plan.recipe.rotation == "learned":
        steps.append(("rotations", weights * (2.2 * windows_seen(windows) + 2.2 * STEPS)))
    if plan.limits is not None:
        steps.append(("sensitivity", 4.0 * weights * min(amount.samples, WINDOWS)))
    layers = plan.spec.num_layers
    work = {"off": 0.7, "fixed": 1.0, "search": 2.5}[plan.recipe.smoothing]
    work += 1.8 if feeds_back(plan.recipe, plan.scheme) else 0.0
    steps += [(f"layer {i + 1}/{layers}", work * weights * tokens * 30 / layers) for i in range(layers)]
    steps.append(("held-out windows", 1.5 * weights * held_out(windows)))
    for stage in plan.recipe.learn:
        seen = weights * stage.steps * stage.batch
        if stage.scope == "block":
            steps.append(("learn blocks", BLOCK_STEP * seen))
        else:
            steps += [
                ("float model", FORWARD * weights * min(windows, stage.steps * stage.batch)),
                ("learn end to end", MODEL_STEP * seen),
            ]
    if plan.recipe.learn:
        steps.append(("ranges after learning", 15.0 * weights))
    if plan.recipe.bias_correction:  # passes as many as error feedback's
        steps.append(("bias correction", 90.0 * weights * tokens))
    for target in plan.targets:
        for name in target.backends:
            own, scaled = EXECUTORCH if name == "executorch" else OTHERS
            steps.append((f"write {name} for {target.name}", own + scaled * weights))
    if plan.limits is not None:
        steps += [("held-out text", 40.0 * weights), ("held-out perplexity", 15.0 * weights)]
    return [*steps, ("golden vectors", 20.0 * weights)]
