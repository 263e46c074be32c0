"""What `--effort` makes of a recipe."""

from __future__ import annotations

import pytest

from mobileicsa.artifact.effort import EFFORTS, scaled
from mobileicsa.core.errors import UsageError
from mobileicsa.quantize.recipe import Recipe, load_recipe, windows_of


def amounts(recipe: Recipe) -> tuple[int, int, list[tuple[str, int]], int]:
    steps = [(stage.scope, stage.steps) for stage in recipe.learn]
    return recipe.calibration.samples, windows_of(recipe), steps, recipe.prefix_tokens


@pytest.mark.parametrize(
    ("effort", "expected"),
    [
        ("fast", (32, 80, [("model", 80)], 1)),
        ("default", (32, 320, [("block", 64), ("model", 320)], 2)),
        ("best", (128, 1280, [("block", 256), ("model", 1280)], 2)),
    ],
)
def test_the_default_recipe(effort: str, expected: tuple[int, int, list[tuple[str, int]], int]) -> None:
    assert amounts(scaled(load_recipe("learned"), effort)) == expected


def test_fast_keeps_the_only_learning_that_a_recipe_has() -> None:
    plain = load_recipe("omniquant")
    fast = scaled(plain, "fast")
    assert [stage.scope for stage in fast.learn] == ["block"]
    assert fast.learn[0].steps == round(plain.learn[0].steps / 4)


@pytest.mark.parametrize("effort", EFFORTS)
def test_no_effort_adds_what_a_recipe_leaves_out(effort: str) -> None:
    recipe = scaled(load_recipe("minmax"), effort)
    assert (recipe.prefix_tokens, recipe.learn) == (0, ())


def test_an_unknown_effort_is_named() -> None:
    with pytest.raises(UsageError, match="--effort fst: unknown") as raised:
        scaled(load_recipe("learned"), "fst")
    assert raised.value.hint == "did you mean fast?"
