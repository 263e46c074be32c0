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


def expected_seconds(plan: BuildPlan) -> list[tuple[str, float]]:
    """Steps by the titles under which they report progress, in order."""
    amount = plan.recipe.calibration
    tokens = amount.samples * amount.length / MEASURED_TOKENS
    weights = plan.spec.decoder_weight_count / MEASURED_WEIGHTS
    windows = windows_of(plan.recipe)
    written = plan.written_windows
    steps = [("calibration text", (30.0 + 0.6 * written) * weights if written else 0.1)]
    if plan.recipe.prefix_tokens:
        steps.append(("sink prefix", 0.75 * weights * race_length(windows, plan.recipe.prefix_tokens)))
    if plan.recipe.rotation == "learned":
        steps.append(("rotations", weights * (2.2 * windows_seen(windows) + 2.2 * STEPS)))
    if plan.limits is not None:
        steps.append(("sensitivity", 4.0 * weights * min(amount.samples, WINDOWS)))
    layers = plan.spec.num_layers
    work = {"off": 1.0, "fixed": 1.5, "search": 4.0}[plan.recipe.smoothing]
    work += 3.0 if feeds_back(plan.recipe, plan.scheme) else 0.0
    steps += [(f"layer {i + 1}/{layers}", work * weights * tokens * 30 / layers) for i in range(layers)]
    steps.append(("held-out windows", 1.8 * weights * held_out(windows)))
    for stage in plan.recipe.learn:
        learning = 1.6 * weights * stage.steps * stage.batch
        if stage.scope == "block":
            steps.append(("learn blocks", learning))
        else:
            steps += [
                ("float model", 0.6 * weights * min(windows, stage.steps * stage.batch)),
                ("learn end to end", learning),
            ]
    if plan.recipe.learn:
        steps.append(("ranges after learning", 30.0 * weights))
    if plan.recipe.bias_correction:  # passes as many as error feedback's
        steps.append(("bias correction", 90.0 * weights * tokens))
    for target in plan.targets:
        steps += [(f"write {name} for {target.name}", 30.0 + 30.0 * weights) for name in target.backends]
    if plan.limits is not None:
        steps += [("held-out text", 40.0 * weights), ("held-out perplexity", 15.0 * weights)]
    return [*steps, ("golden vectors", 30.0 * weights)]
