"""Head-room of 8-bit ranges, and recipes that leave later fields off."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny_learning import quantized, tiny_weights
from torch import Tensor

from mobileicsa.calibrate.statistics import ObservedEdge, fake_quantize
from mobileicsa.core.errors import SchemeError
from mobileicsa.core.scheme import SCHEMES
from mobileicsa.models.edge import Edge
from mobileicsa.quantize.ranges import encode_edge
from mobileicsa.quantize.recipe import Recipe, bundled_recipes, load_recipe


def error(x: Tensor, role: str, ranges: Literal["minmax", "mse"], headroom: float, values: Tensor) -> float:
    """Mean squared rounding error of `values` on the grid found for `x`."""
    edge = ObservedEdge(Edge(role), 1)
    edge(x)
    encoding = encode_edge(edge, SCHEMES["w8a8"], ranges, headroom)
    return float((fake_quantize(values, encoding) - values).square().mean())


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_a_token_beyond_calibration_clips_less_and_all_others_round_more_coarsely(
    ranges: Literal["minmax", "mse"],
) -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    beyond = x.max().reshape(1) * 1.3
    assert error(x, "down_in", ranges, 1.2, beyond) < 0.5 * error(x, "down_in", ranges, 1.0, beyond)
    inner = x[x.abs() < 2.0]
    assert error(x, "down_in", ranges, 1.2, inner) > error(x, "down_in", ranges, 1.0, inner)
    assert error(x, "residual", ranges, 1.2, beyond) == error(x, "residual", ranges, 1.0, beyond)


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_only_8_bit_ranges_that_calibration_found_are_widened(ranges: str, tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    plain, wide = (quantized(spec, weights, fields={"ranges": ranges, "headroom": h}) for h in (1.0, 1.5))
    widened = set()
    for name, before in plain.plan.edges.items():
        (low, high), (new_low, new_high) = before.real_range(), wide.plan.edges[name].real_range()
        if before != wide.plan.edges[name]:
            widened.add(name)
            assert before.bits == 8
            assert 1.2 < (new_high - new_low) / (high - low) < 1.9  # short scales round up
    assert {"layers.0.attn.k_out", "layers.1.mlp.product", "layers.0.attn_norm.out", "head.norm.out"} <= widened
    assert not [name for name in widened if "softmax" in name or "gain" in name]


def test_recipes_that_leave_later_fields_off_are_written_as_before_these_were_there() -> None:
    for name in bundled_recipes():
        recipe = load_recipe(name)
        assert not {"codes", "headroom", "bias_correction"} & set(recipe.model_dump(mode="json"))
        assert Recipe(**recipe.model_dump(mode="json")) == recipe
    on = load_recipe("prefix", ("headroom=1.1", "bias_correction=true"))
    assert Recipe(**on.model_dump(mode="json")) == on != load_recipe("prefix")
    assert (on.model_dump()["headroom"], on.model_dump()["bias_correction"]) == (1.1, True)


@pytest.mark.parametrize("value", ["0.9", "2.5", ".nan", ".inf"])
def test_a_headroom_that_narrows_or_doubles_is_refused(value: str) -> None:
    with pytest.raises(SchemeError, match="headroom"):
        load_recipe("prefix", (f"headroom={value}",))
