"""A recipe's amounts as a build runs them: by the effort asked for, and as the model's context allows."""

from __future__ import annotations

import difflib
import logging

from mobileicsa.core.errors import UsageError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.quantize.recipe import Recipe

# Factor on the recipe's calibration windows and learning steps.
EFFORTS = {"fast": 0.25, "default": 1.0, "best": 4.0}

log = logging.getLogger(__name__)


def fitting_recipe(recipe: Recipe, spec: ModelSpec) -> tuple[Recipe, list[str]]:
    """The recipe with windows that fit the model's context behind the longest prefix, and a note if they were cut."""
    longest = max(spec.max_context - recipe.prefix_tokens, 2)
    length = recipe.calibration.length
    if length <= longest:
        return recipe, []
    calibration = recipe.calibration.model_copy(update={"length": longest})
    note = f"calibration.length {length} shortened to {longest}: the model's context is {spec.max_context}"
    log.warning("%s", note)
    return recipe.model_copy(update={"calibration": calibration}), [note]


def scaled(recipe: Recipe, effort: str) -> Recipe:
    """The recipe with its windows and learning steps multiplied as the effort says; UsageError for an unknown one."""
    if effort not in EFFORTS:
        near = difflib.get_close_matches(effort, EFFORTS, n=1)
        raise UsageError(
            f"--effort {effort}: unknown; efforts are {', '.join(EFFORTS)}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    factor, amount = EFFORTS[effort], recipe.calibration
    windows = {
        "samples": max(1, round(amount.samples * factor)),
        "learning_samples": round(amount.learning_samples * factor),
    }
    learn = [stage.model_copy(update={"steps": max(1, round(stage.steps * factor))}) for stage in recipe.learn]
    return recipe.model_copy(update={"calibration": amount.model_copy(update=windows), "learn": tuple(learn)})
