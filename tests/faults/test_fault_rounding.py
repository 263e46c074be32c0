"""Torture list, cases 26 and 27 as properties: scales, zero points and requantisation against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from one_linear import OneLinear, encoding

from mobileicsa.core.encoding import MIN_SCALE, activation, shorten
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.quantize.rounding import WEIGHT_MANTISSA_BITS, clipped_scale, round_weight, short_scale, weight_scale


def singles(low: float, high: float) -> st.SearchStrategy[float]:
    """float32 values."""
    return st.floats(float(np.float32(low)), float(np.float32(high)), width=32)


SCALES, ENDS, WEIGHTS = singles(MIN_SCALE, 1e30), singles(-1e37, 1e37), singles(-1e36, 1e36)
ACTIVATION_MANTISSA_BITS = 6
INT8, INT4, FULL_INT4 = WeightEncoding(bits=8), WeightEncoding(bits=4), WeightEncoding(bits=4, narrow=False)


@given(SCALES, st.sampled_from([0, 2, 6, 15]))
@example(1.0, 6)
@example(MIN_SCALE, 0)
def test_fault_26_a_short_scale_is_the_next_one_of_that_many_bits(scale: float, bits: int) -> None:
    short = shorten(scale, bits)
    assert scale <= short <= scale * (1 + 2.0**-bits)
    assert float(np.float32(short)) == short
    mantissa, _ = math.frexp(short)
    assert (mantissa * 2 ** (bits + 1)).is_integer()
    assert shorten(short, bits) == short


@given(st.lists(SCALES, min_size=1, max_size=20))
def test_fault_26_weight_scales_are_shortened_like_all_others(scales: list[float]) -> None:
    expected = [shorten(scale, WEIGHT_MANTISSA_BITS) for scale in scales]
    assert short_scale(torch.tensor(scales, dtype=torch.float32)).tolist() == expected


@given(SCALES, SCALES)
def test_fault_26_the_product_of_two_short_scales_is_exact_in_float32(x: float, w: float) -> None:
    a = shorten(x, ACTIVATION_MANTISSA_BITS)
    b = shorten(min(w, 1.0), WEIGHT_MANTISSA_BITS)
    assert Fraction(float(np.float32(a) * np.float32(b))) == Fraction(a) * Fraction(b)


@given(ENDS, ENDS, st.sampled_from([8, 16]), st.sampled_from([None, 0, 2, 6]), st.floats(0, 1))
@example(0.0, 0.0, 8, 6, 0.5)
@example(-1e37, 1e37, 8, None, 1.0)
@example(1e-45, 1e-45, 8, 2, 1.0)
def test_fault_26_every_value_in_a_range_is_within_half_a_step_of_the_grid(
    one: float, other: float, bits: int, mantissa: int | None, place: float
) -> None:
    low, high = min(one, other), max(one, other)
    found = activation(low, high, bits, mantissa)
    scale, zero = Fraction(found.scale[0]), found.zero_point[0]
    assert found.qmin <= zero <= found.qmax
    value = Fraction(low) + (Fraction(high) - Fraction(low)) * Fraction(place)
    q = min(max(round(value / scale) + zero, found.qmin), found.qmax)
    # A scale rounded to float32 may be a hair below range / steps.
    assert abs((q - zero) * scale - value) <= scale * Fraction(1, 2) * (1 + Fraction(1, 2**14))


@settings(max_examples=60)
@given(
    st.lists(WEIGHTS, min_size=2, max_size=8),
    st.sampled_from([INT8, INT4, FULL_INT4]),
    st.booleans(),
)
@example([0.0, -0.0], INT8, True)
@example([1e-44, -1e-44], INT4, False)
@example([-8.0, 7.0], FULL_INT4, False)
def test_fault_26_every_row_of_weights_has_a_usable_scale(row: list[float], kind: WeightEncoding, clip: bool) -> None:
    weight = torch.tensor([row], dtype=torch.float32)
    scale = clipped_scale(weight, torch.ones(len(row)), kind) if clip else weight_scale(weight, kind)
    assert math.isfinite(scale[0])
    assert scale[0] > 0
    codes = round_weight(weight, scale, kind)
    assert kind.qmin <= int(codes.min()) <= int(codes.max()) <= kind.qmax
    if not clip:
        error = (codes * scale[:, None] - weight).double().abs().max()
        assert float(error) <= float(scale[0]) * 0.5001
    if not weight.any():
        assert scale[0] == 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(64, 127),
    st.integers(2**15, 2**16 - 1),
    st.integers(64, 127),
    st.integers(-30, 4),
    st.integers(-128, 127),
    st.lists(st.integers(-128, 127), min_size=6, max_size=6),
)
def test_fault_26_requantisation_equals_exact_arithmetic_but_for_a_hair_around_ties(
    x_mantissa: int, w_mantissa: int, y_mantissa: int, exponent: int, zero: int, codes: list[int]
) -> None:
    """All scales that the quantiser can make, up to powers of two, multipliers from 2**-31 to 2**6."""
    x, y = encoding(x_mantissa * 2.0**-10, zero), encoding(y_mantissa * 2.0**-10, -zero // 2)
    scales = torch.full((4,), w_mantissa * 2.0 ** (exponent - 15))
    model = OneLinear(x, y, scales, 6)
    values = (torch.tensor([codes], dtype=torch.float32) - zero) * x.scale[0]
    with torch.no_grad():
        got = model(values)[0].tolist()
    for q, weights in zip(got, model.linear.weight.tolist(), strict=True):
        total = sum((a - zero) * w for a, w in zip(codes, weights, strict=True))
        exact = total * Fraction(x.scale[0]) * Fraction(float(scales[0])) / Fraction(y.scale[0])
        allowed = {round(exact * (1 + error)) for error in (0, Fraction(1, 2**22), -Fraction(1, 2**22))}
        assert q in {min(max(step + y.zero_point[0], -128), 127) for step in allowed}


def test_fault_27_division_and_inverse_differ_at_exact_ties_only() -> None:
    """ONNX's QuantizeLinear divides, PyTorch and XNNPACK multiply by the inverse in float32."""
    for mantissa in range(64, 128):
        scale = np.float32(mantissa * 2.0**-10)
        quarter_steps = np.arange(-4 * 300, 4 * 300 + 1)
        x = (quarter_steps * (float(scale) / 4)).astype(np.float32)
        divided, multiplied = np.rint(x / scale), np.rint(x * (np.float32(1) / scale))
        ties = quarter_steps % 4 == 2
        np.testing.assert_array_equal(divided[~ties], multiplied[~ties])
        assert np.abs(divided - multiplied).max() <= 1
        np.testing.assert_array_equal(divided, [round(Fraction(int(k), 4)) for k in quarter_steps])
