"""Fields given beside a recipe's name: inside of sections and of stages, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobileicsa.core.errors import SchemeError
from mobileicsa.core.scheme import find_scheme
from mobileicsa.quantize.recipe import SPREAD_AT_4_BITS, bundled_recipes, load_recipe, stages_for


def test_fields_reach_into_sections_and_stages() -> None:
    recipe = load_recipe("learned", ("calibration.samples=3", "learn.1.save_memory=true", "learn.0.steps=5"))
    assert recipe.calibration.samples == 3
    assert [stage.save_memory for stage in recipe.learn] == [False, True]
    assert recipe.learn[0].steps == 5
    assert load_recipe("learned", ("learn.1={steps: 7}",)).learn[1].steps == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learn.2.steps=1", "no entry '2'; there are 2, from 0"),
        ("learn.last.steps=1", "no entry 'last'"),
        ("learn.-1.steps=1", "no entry '-1'"),
        ("rotation.kind=1", "nothing is inside of 'hadamard'"),
        ("learn.0.stepz=1", "field learn.0.stepz"),
    ],
)
def test_fields_that_are_not_there_are_named(override: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message.replace(".", r"\.")):
        load_recipe("learned", (override,))


def test_off_is_a_word_wherever_it_is_written(tmp_path: Path) -> None:
    """YAML 1.1 takes it for false."""
    recipe = load_recipe("learned", ("smoothing=off", "rotation=off"))
    assert (recipe.smoothing, recipe.rotation) == ("off", "off")
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nrotation: off\nsmoothing: off\n")
    assert load_recipe(str(path)).rotation == load_recipe(str(path)).smoothing == "off"
    with pytest.raises(SchemeError, match="smoothing"):
        load_recipe("learned", ("smoothing=on",))


@pytest.mark.parametrize("value", ["true", "often", "-0.1", "1.5", ".nan", "[0.5]"])
def test_a_share_is_a_number_or_auto_and_not_a_switch(value: str) -> None:
    with pytest.raises(SchemeError, match=r"calibration\.spread: .* is no share from 0 to 1, nor auto"):
        load_recipe("learned", (f"calibration.spread={value}",))


@pytest.mark.parametrize(("text", "share"), [("0.25", 0.25), ("0", 0.0), ("1", 1.0)])
def test_a_share_reads_as_it_is_written(text: str, share: float) -> None:
    assert load_recipe("learned", (f"calibration.spread={text}",)).calibration.share() == share


def test_windows_are_spread_where_4_bit_weights_learn_unless_one_says_how() -> None:
    four, eight = find_scheme("w4a8"), find_scheme("w8a8")
    learned = load_recipe("learned")
    assert learned.calibration.spread == "auto"
    assert stages_for(learned, four).calibration.share() == SPREAD_AT_4_BITS
    assert stages_for(learned, eight).calibration.share() == 0.0
    told = load_recipe("learned", ("calibration.spread=0.5",))
    assert {stages_for(told, scheme).calibration.share() for scheme in (four, eight)} == {0.5}
    for name in set(bundled_recipes()) - {"learned"}:
        assert stages_for(load_recipe(name), four).calibration.share() == 0.0


def test_a_recipe_without_a_scheme_has_no_share_yet() -> None:
    with pytest.raises(ValueError, match="auto"):
        load_recipe("learned").calibration.share()
