"""4-bit weights with the code -8: less error from the same scale search, in every part of a run that rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_learning import quantized, tiny_weights
from torch import Tensor

from mobileicsa.core.errors import SchemeError
from mobileicsa.core.plan import QuantPlan, WeightEncoding
from mobileicsa.core.scheme import QuantScheme, find_scheme
from mobileicsa.program.targets import all_targets, check_scheme, find_target
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.gptq_math import round_with_feedback
from mobileicsa.quantize.packed import PROMOTED_BITS
from mobileicsa.quantize.recipe import Learning, Recipe, codes_for, load_recipe, stages_for
from mobileicsa.quantize.rounding import clipped_scale, round_weight, weight_scale

NARROW, FULL = WeightEncoding(bits=4), WeightEncoding(bits=4, narrow=False)
ScaleOf = Callable[[Tensor, WeightEncoding], Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def searched(weight: Tensor, encoding: WeightEncoding) -> Tensor:
    return clipped_scale(weight, torch.ones(weight.shape[1]), encoding)


def gaussian(rows: int = 256, columns: int = 576) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def squared_error(weight: Tensor, encoding: WeightEncoding, scale_of: ScaleOf) -> float:
    scale = scale_of(weight, encoding)
    return float((round_weight(weight, scale, encoding) * scale[:, None] - weight).square().sum())


@pytest.mark.parametrize("columns", [64, 576, 1536])
@pytest.mark.parametrize("scale_of", [searched, weight_scale])
def test_the_code_takes_a_twentieth_at_least_off_the_error_of_gaussian_rows(scale_of: ScaleOf, columns: int) -> None:
    weight = gaussian(columns=columns)
    assert squared_error(weight, FULL, scale_of) < 0.95 * squared_error(weight, NARROW, scale_of)


def test_error_feedback_gains_as_much() -> None:
    weight = gaussian(64, 192)
    inputs = torch.randn(500, 192, generator=torch.Generator().manual_seed(1)) @ gaussian(192, 192)
    hessian, errors = (inputs.T @ inputs).double(), []
    for encoding in (NARROW, FULL):
        scale = clipped_scale(weight, hessian.diagonal().float(), encoding)
        integers = round_with_feedback(weight, scale, hessian, encoding)
        assert int(integers.min()) == encoding.qmin
        errors.append(float(((integers * scale[:, None] - weight) @ inputs.T).square().sum()))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize(("row", "step"), [([-8.0, 3.0], 1.0), ([8.0, -3.0], 8 / 7), ([-8.0, 7.5], 7.5 / 7)])
def test_a_row_gets_the_least_step_that_holds_both_of_its_ends(row: list[float], step: float) -> None:
    weight = torch.tensor([row])
    assert weight_scale(weight, FULL).item() == pytest.approx(step, rel=1e-4)
    assert weight_scale(weight, NARROW).item() == pytest.approx(8 / 7, rel=1e-4)


def codes(plan: QuantPlan, tensors: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Least and largest integer of each linear in the blocks."""
    return {n: (int(tensors[n].min()), int(tensors[n].max())) for n in plan.weights if n.startswith("layers.")}


@pytest.mark.parametrize("weights", ["nearest", "clip", "gptq"])
def test_a_run_uses_the_code_only_where_the_recipe_says_so(weights: str, tmp_path: Path) -> None:
    spec, source = tiny_weights(tmp_path)
    mean_error = {}
    for chosen in ("narrow", "full"):
        result = quantized(spec, source, prefix_tokens=0, fields={"weights": weights, "codes": chosen})
        assert result.plan.scheme.narrow_weights == (chosen == "narrow")
        assert {low for low, _ in codes(result.plan, result.tensors).values()} == {-7 if chosen == "narrow" else -8}
        assert {w.narrow for n, w in result.plan.weights.items() if w.bits == 4} == {chosen == "narrow"}
        assert result.plan.weights["embed.weight"].narrow
        assert QuantPlan.from_json(result.plan.to_json()) == result.plan
        errors = [result.report["weights"][name]["relative_error"] for name in codes(result.plan, result.tensors)]
        mean_error[chosen] = sum(errors) / len(errors)
    if weights != "gptq":  # error feedback may give a worse weight
        assert mean_error["full"] < 0.95 * mean_error["narrow"]


def test_learned_weights_use_the_code_and_promoted_ones_keep_to_theirs(tmp_path: Path) -> None:
    spec, source = tiny_weights(tmp_path)
    stage = Learning(scope="block", weights="latent", steps=2, lr_weights=0.02, lr_scales=0.002)
    limits = Limits(budget_bytes=22_500)
    result = quantized(spec, source, stage, prefix_tokens=0, fields={"codes": "full"}, limits=limits)
    assert 0 < len(result.plan.promoted) < len(codes(result.plan, result.tensors))
    for name, (low, high) in codes(result.plan, result.tensors).items():
        encoding = result.plan.weights[name]
        assert encoding == (WeightEncoding(bits=PROMOTED_BITS) if name in result.plan.promoted else FULL)
        assert encoding.qmin <= low <= high <= encoding.qmax
    assert min(low for name, (low, _) in codes(result.plan, result.tensors).items()) < -100
    assert {low for n, (low, _) in codes(result.plan, result.tensors).items() if n not in result.plan.promoted} == {-8}


def test_a_recipe_without_the_code_is_kept_as_before_there_was_a_choice() -> None:
    kept = load_recipe("rotated").model_dump(mode="json")
    assert "codes" not in kept
    assert Recipe(**kept).codes == "narrow"
    assert load_recipe("rotated", ["codes=full"]).model_dump(mode="json") == {**kept, "codes": "full"}


@pytest.mark.parametrize(("name", "narrow"), [("w4a8", False), ("w4a16", False), ("w8a8", True)])
def test_only_4_bit_schemes_have_a_choice(name: str, narrow: bool) -> None:
    scheme = find_scheme(name)
    recipe = stages_for(load_recipe("rotated", ["codes=full"]), scheme)
    assert codes_for(scheme, recipe).narrow_weights == narrow
    assert ("codes" in recipe.model_dump()) == (not narrow)


def test_an_8_bit_scheme_with_the_code_minus_128_is_refused() -> None:
    with pytest.raises(SchemeError, match="no code -128"):
        QuantScheme(name="odd", weight_bits=8, activation_bits={}, narrow_weights=False)


def test_a_target_without_the_code_is_refused_by_name() -> None:
    full = codes_for(find_scheme("w4a8"), load_recipe("rotated", ["codes=full"]))
    check_scheme(full, find_target("host-cpu"))
    check_scheme(find_scheme("w4a8"), find_target("generic-npu"))
    with pytest.raises(SchemeError, match="--target generic-npu: takes 4-bit weights from -7 to 7") as caught:
        check_scheme(full, find_target("generic-npu"))
    able = " or ".join(sorted(name for name, target in all_targets().items() if target.int4_full_range))
    assert "host-cpu" in able
    assert caught.value.hint == f"quantise with codes=narrow, or for {able} only"
