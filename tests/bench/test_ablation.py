"""The ablation's recipes and figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.accuracy.ablation_figure import draw
from benchmarks.accuracy.variants import VARIANTS, Variant, changed, slug, write_recipe
from benchmarks.tables import ablation
from mobileicsa.core.scheme import find_scheme
from mobileicsa.program.targets import DEFAULT_TARGET, check_scheme, find_target
from mobileicsa.quantize.recipe import codes_for, load_recipe


@pytest.mark.parametrize("variant", VARIANTS, ids=slug)
def test_every_variant_is_a_recipe_that_differs_from_its_own_only_where_it_says(
    variant: Variant, tmp_path: Path
) -> None:
    made = load_recipe(str(write_recipe(variant, tmp_path)))
    whole = load_recipe(variant.recipe)
    differing = {name for name in type(made).model_fields if getattr(made, name) != getattr(whole, name)}
    assert differing == {path.split(".")[0] for path in variant.changes}


def test_variants_are_all_different() -> None:
    assert len({(v.recipe, repr(v.changes)) for v in VARIANTS}) == len({slug(v) for v in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=slug)
def test_the_target_takes_the_codes_of_every_variant(variant: Variant, tmp_path: Path) -> None:
    recipe = load_recipe(str(write_recipe(variant, tmp_path)))
    check_scheme(codes_for(find_scheme(variant.scheme), recipe), find_target(DEFAULT_TARGET))


def test_every_variant_has_the_whole_recipe_beside_it() -> None:
    assert {v.recipe for v in VARIANTS} == {v.recipe for v in VARIANTS if not v.changes}


def test_a_change_reaches_into_lists_and_takes_entries_away() -> None:
    recipe = {"a": 1, "learn": [{"steps": 1}, {"steps": 2}]}
    assert changed(recipe, {"learn.1.steps": 5, "learn.0": None}) == {"a": 1, "learn": [{"steps": 5}]}
    assert recipe["learn"] == [{"steps": 1}, {"steps": 2}]


def test_a_change_of_a_missing_stage_fails(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        write_recipe(Variant("x", "learned", {"learn.7.steps": 1}), tmp_path)


def test_figure_and_table_hold_every_variant() -> None:
    texts = {"wikitext2": {"ratio": 1.25}, "shakespeare": {"ratio": 1.125}}
    rows = [{"name": v.name, "texts": texts, "ratio": 1.19, "quantize_s": 60.0} for v in VARIANTS]
    result = {"model": "tiny", "rows": rows}
    figure, table = draw(result), "\n".join(ablation(result))
    assert "1.190" in figure
    for variant in VARIANTS:
        assert f"| {variant.name} | 1.250× | 1.125× |" in table
