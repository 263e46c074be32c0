"""Torture list, cases 20 to 25: weights and activations that break naive arithmetic, through the real command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_artifact import write_checkpoint
from tiny_command import LAYER, Tiny
from torch import Tensor

from mobileicsa.core.encoding import MIN_SCALE, TensorEncoding, activation

UP, DOWN, Q = (LAYER + name for name in ("mlp.up_proj.weight", "mlp.down_proj.weight", "self_attn.q_proj.weight"))
EMBEDDING = "model.embed_tokens.weight"
LAST = "model.layers.1.mlp.down_proj.weight"


def fill_row(value: float) -> Any:
    """An edit: the signs of row 1 stay, its magnitudes become `value`."""

    def edit(weight: Tensor) -> None:
        weight[1] = torch.where(weight[1] > 0, value, -value)

    return edit


def encodings(tiny: Tiny) -> dict[str, TensorEncoding]:
    return {name: TensorEncoding.from_json(e) for name, e in tiny.artifact("quant_plan.json")["edges"].items()}


def assert_finite(tiny: Tiny) -> None:
    """Every scale, every stored number, and the loss of the quantised model."""
    assert all(math.isfinite(e.scale[0]) for e in encodings(tiny).values())
    tensors = load_file(tiny.output / "weights.safetensors")
    assert all(bool(torch.isfinite(value.float()).all()) for value in tensors.values())
    ran = tiny.perplexity()
    assert ran.code == 0
    assert math.isfinite(ran.document["perplexity"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fault_20_a_bad_number_in_the_last_layer_is_found_before_any_work(tiny: Tiny, value: float) -> None:
    tiny.change(LAST, lambda weight: weight[30:].fill_(value))
    for more in ([], ["--dry-run"]):
        ran = tiny.quantize(*more)
        assert ran.code == 3
        assert f"tensor {LAST!r} holds NaN or infinity: 96 of 1536 values, first at [30, 0]" in ran.message
        assert tiny.left_behind() == []


def test_fault_21_zero_channels_get_scale_one_and_are_counted(tiny: Tiny) -> None:
    tiny.change(UP, lambda weight: weight[5].zero_())
    tiny.change(Q, lambda weight: weight.zero_())
    tiny.change(EMBEDDING, lambda weight: weight[7].zero_())
    ran = tiny.quantize(recipe="prefix")
    assert ran.code == 0
    counts = {name: row["zero_rows"] for name, row in ran.document["weights"].items() if row["zero_rows"]}
    assert counts == {"layers.0.mlp.up_proj.weight": 1, "layers.0.attn.q_proj.weight": 32, "embed.weight": 1}
    assert "Output channels that are all zero, over every weight: 34." in (tiny.output / "report.html").read_text()
    tensors = load_file(tiny.output / "weights.safetensors")
    for name, row in (("layers.0.mlp.up_proj.weight", 5), ("layers.0.attn.q_proj.weight", 0), ("embed.weight", 7)):
        assert tensors[f"{name}.scale"][row] == 1.0
        assert not tensors[name][row].any()
    assert_finite(tiny)


def test_fault_21_a_model_of_zeros_predicts_every_token_alike(tiny: Tiny) -> None:
    tiny.change(EMBEDDING, lambda weight: weight.zero_())
    assert tiny.quantize().code == 0
    assert tiny.perplexity().document["perplexity"] == pytest.approx(259, rel=1e-5)


@pytest.mark.parametrize("recipe", ["minmax", "prefix"])
def test_fault_22_a_subnormal_channel_is_counted_as_zero(tiny: Tiny, recipe: str) -> None:
    tiny.change(UP, fill_row(1e-40))
    ran = tiny.quantize(recipe=recipe)
    assert ran.code == 0
    assert ran.document["weights"]["layers.0.mlp.up_proj.weight"]["zero_rows"] == 1
    scale = load_file(tiny.output / "weights.safetensors")["layers.0.mlp.up_proj.weight.scale"]
    assert MIN_SCALE <= scale[1] < 1.001 * MIN_SCALE
    assert_finite(tiny)


def test_fault_22_a_channel_of_1e30_has_a_finite_scale(tiny: Tiny) -> None:
    tiny.change(Q, fill_row(1e30))
    assert tiny.quantize().code == 0
    scale = load_file(tiny.output / "weights.safetensors")["layers.0.attn.q_proj.weight.scale"]
    attention_scale = (32 / 4) ** -0.5  # kept in the query's weight
    assert scale[1] == pytest.approx(1e30 * attention_scale / 127, rel=1e-4)
    assert_finite(tiny)


@pytest.mark.parametrize("recipe", ["minmax", "prefix"])
def test_fault_22_a_channel_that_overflows_float32_is_refused_by_its_place(tiny: Tiny, recipe: str) -> None:
    tiny.change(DOWN, fill_row(1e30))
    ran = tiny.quantize(recipe=recipe)
    assert ran.code == 3
    assert "layers.1.attn_norm.square is NaN or infinite" in ran.message
    assert not tiny.output.exists()


def test_fault_22_values_that_overflow_behind_the_prefix_search_are_refused_by_their_place(tiny: Tiny) -> None:
    tiny.change(LAYER + "self_attn.v_proj.weight", fill_row(1e30))
    ran = tiny.quantize(recipe="prefix")
    assert ran.code == 3
    assert "layers.0.mlp_norm.square is NaN or infinite" in ran.message


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.0), (5.0, 5.0), (-3.0, -3.0), (2.0, 7.0), (-7.0, -2.0), (0.0, 1e-12)]
)
@pytest.mark.parametrize(("bits", "mantissa"), [(8, None), (8, 2), (8, 6), (16, 0)])
def test_fault_23_a_range_is_widened_to_hold_an_exact_zero(
    low: float, high: float, bits: int, mantissa: int | None
) -> None:
    encoding = activation(low, high, bits, mantissa)
    scale, zero = encoding.scale[0], encoding.zero_point[0]
    assert scale > 0
    assert encoding.qmin <= zero <= encoding.qmax
    bottom, top = encoding.real_range()
    assert bottom - scale / 2 <= min(low, 0.0)
    assert max(high, 0.0) <= top + scale / 2
    for value in (low, high, 0.0):
        q = min(max(round(value / scale) + zero, encoding.qmin), encoding.qmax)
        assert abs((q - zero) * scale - value) <= scale / 2 * 1.0001
    assert (low, high) != (0.0, 0.0) or scale == 1.0


def test_fault_23_constant_and_one_sided_activations_go_through(tiny: Tiny) -> None:
    tiny.change(UP, lambda weight: weight.zero_())
    ran = tiny.quantize()
    assert ran.code == 0
    assert ran.document["edges"]["layers.0.mlp.product"]["low"] == ran.document["edges"]["layers.0.mlp.product"]["high"]
    assert ran.document["edges"]["layers.0.attn_norm.mean_square"]["low"] > 0
    found = encodings(tiny)
    assert found["layers.0.mlp.product"].scale == (1.0,)
    assert found["layers.0.attn_norm.mean_square"].zero_point[0] == 0  # 16 bits are symmetric
    assert all(e.qmin <= e.zero_point[0] <= e.qmax for e in found.values())
    assert_finite(tiny)


def test_fault_24_one_outlier_channel_stays_finite_and_shows_in_the_report(tiny: Tiny) -> None:
    tiny.change(LAYER + "post_attention_layernorm.weight", lambda gain: gain[3].mul_(1e4))
    ran = tiny.quantize(recipe="prefix")
    assert ran.code == 0
    edge, choice = ran.document["edges"]["layers.0.mlp_norm.out"], ran.document["smoothing"]["layers.0"][1]
    assert choice["site"] == "mlp"
    assert choice["error"] < 0.7 * choice["error_before"]
    # Smoothing took a part of the outlier away from the activation.
    assert max(-edge["low"], edge["high"]) < 1e4
    assert 0 <= edge["clipped"] < 0.1
    others = [e["sqnr_db"] for name, e in ran.document["edges"].items() if name.endswith("_norm.out")]
    assert edge["sqnr_db"] == min(others)
    page = (tiny.output / "report.html").read_text()
    assert "<th>Clipped</th>" in page
    assert "<code>layers.0.mlp_norm.out</code>" in page
    assert_finite(tiny)


def wide(folder: Path, inner: int) -> Path:
    shape = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    return write_checkpoint(folder, intermediate_size=inner, **shape)


WIDEST = 66_311  # of 8-bit weights, |code| <= 127


@pytest.mark.parametrize(
    ("scheme", "inner", "code"), [("w8a8", WIDEST, 0), ("w8a8", WIDEST + 1, 3), ("w4a8", WIDEST + 1, 0)]
)
def test_fault_25_sums_that_may_overflow_are_refused_at_plan_time(
    tiny: Tiny,
    scheme: str,
    inner: int,
    code: int,
) -> None:
    tiny.checkpoint = wide(tiny.folder / "checkpoint", inner)
    ran = tiny.quantize("--dry-run", "--scheme", scheme)
    assert ran.code == code
    if code:
        assert f"scheme {scheme}: layers: sums over {inner} products can overflow 32 bits" in ran.message
        assert str(WIDEST) in ran.document["error"]["hint"]


def test_fault_25_the_bound_is_where_the_worst_sum_leaves_int32() -> None:
    def worst(products: int) -> tuple[int, int]:
        x, w = np.full(products, 127 + 128, np.int32), np.full(products, 127, np.int32)
        return int(np.dot(x, w)), products * 255 * 127

    wrapped, exact = worst(WIDEST)
    assert wrapped == exact
    wrapped, exact = worst(WIDEST + 1)
    assert wrapped != exact
