"""A recipe's amounts as a build runs them: by the effort asked for, and as the model's context allows."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass

from mobileicsa.core.errors import UsageError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.quantize.recipe import Recipe


@dataclass(frozen=True)
class Effort:
    """Factors on the windows that set ranges and rounding (`calibration`), and on those that are learned from and the
    steps of it (`learning`); `blocks`: whether a model that learns end to end learns block by block before that;
    `prefix_tokens`: the most that are searched, None as many as the recipe says."""

    calibration: float = 1.0
    learning: float = 1.0
    blocks: bool = True
    prefix_tokens: int | None = None


# Fast leaves out what gains least for its time (SmolLM2, W4A8, KL to float): with a quarter of the steps, learning
# block by block 0.006 of 0.24 in five minutes, then end to end 0.030 in six; a second prefix token 0.01 in eight.
EFFORTS = {
    "fast": Effort(learning=0.25, blocks=False, prefix_tokens=1),
    "default": Effort(),
    "best": Effort(calibration=4.0, learning=4.0),
}

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
    """The recipe with its windows, learning and prefix as the effort has them; UsageError for an unknown one."""
    if effort not in EFFORTS:
        near = difflib.get_close_matches(effort, EFFORTS, n=1)
        raise UsageError(
            f"--effort {effort}: unknown; efforts are {', '.join(EFFORTS)}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    chosen, amount = EFFORTS[effort], recipe.calibration
    windows = {
        "samples": max(1, round(amount.samples * chosen.calibration)),
        "learning_samples": round(amount.learning_samples * chosen.learning),
    }
    end_to_end = any(stage.scope == "model" for stage in recipe.learn)
    learn = [
        stage.model_copy(update={"steps": max(1, round(stage.steps * chosen.learning))})
        for stage in recipe.learn
        if chosen.blocks or not end_to_end or stage.scope == "model"
    ]
    most = recipe.prefix_tokens if chosen.prefix_tokens is None else chosen.prefix_tokens
    return recipe.model_copy(
        update={
            "calibration": amount.model_copy(update=windows),
            "learn": tuple(learn),
            "prefix_tokens": min(recipe.prefix_tokens, most),
        }
    )
