"""GPTQ's claims on correlated inputs: a worse weight, a better output; and the asymmetric target's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mobileicsa.core.plan import WeightEncoding
from mobileicsa.quantize.gptq_math import damped, round_with_feedback, target_weight
from mobileicsa.quantize.rounding import round_weight, weight_scale

INT4 = WeightEncoding(bits=4)


def correlated_inputs(rows: int, channels: int, seed: int) -> Tensor:
    """Rows (n, in) whose channels share a few directions, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, channels // 8, generator=generator) @ torch.randn(
        channels // 8, channels, generator=generator
    )
    return shared + 0.3 * torch.randn(rows, channels, generator=generator)


def error(weight: Tensor, approximation: Tensor, inputs: Tensor, seen: Tensor | None = None) -> float:
    return float((inputs @ weight.T - (inputs if seen is None else seen) @ approximation.T).square().mean())


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight (out, in), scale (out,), inputs (n, in), hessian; more columns than one block has."""
    weight = torch.randn(24, 200, generator=torch.Generator().manual_seed(0))
    inputs = correlated_inputs(600, 200, 1)
    return weight, weight_scale(weight, INT4), inputs, (inputs.T @ inputs).double()


def test_feedback_gives_a_worse_weight_and_a_better_output(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    weight, scale, inputs, hessian = case
    nearest = round_weight(weight, scale, INT4) * scale[:, None]
    ours = round_with_feedback(weight, scale, hessian, INT4) * scale[:, None]
    assert (ours - weight).square().mean() > (nearest - weight).square().mean()
    assert error(weight, ours, inputs) < 0.6 * error(weight, nearest, inputs)


def test_blocks_give_what_one_column_after_the_other_gives(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """The textbook form: after each column the inverse Hessian of those still open, worked out anew."""
    weight, scale, _, hessian = case
    rows = slice(0, 4)
    ours = round_with_feedback(weight[rows], scale[rows], hessian, INT4)
    open_weight = (weight[rows] / scale[rows, None]).double()
    expected = torch.empty_like(ours)
    left = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    full = damped(hessian)
    while left:
        column = left[0]
        inverse = torch.linalg.inv(full[left][:, left])
        rounded = torch.clamp(torch.round(open_weight[:, column]), INT4.qmin, INT4.qmax)
        expected[:, column] = rounded.to(torch.int8)
        step = (open_weight[:, column] - rounded) / inverse[0, 0]
        open_weight[:, left] -= step[:, None] * inverse[0]
        left = left[1:]
    assert (ours == expected).float().mean() > 0.995


def test_the_asymmetric_target_makes_up_for_the_inputs_error(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    weight, _, inputs, _ = case
    generator = torch.Generator().manual_seed(2)
    seen = inputs * 0.9 + 0.4 * torch.randn(inputs.shape, generator=generator)
    hessian, cross = (seen.T @ seen).double(), (inputs.T @ seen).double()
    errors = []
    for strength in (0.0, 1.0):
        target = target_weight(weight, hessian, cross, strength)
        ours = round_with_feedback(target, weight_scale(target, INT4), hessian, INT4)
        errors.append(error(weight, ours * weight_scale(target, INT4)[:, None], inputs, seen))
    assert errors[1] < 0.8 * errors[0]


def test_equal_inputs_leave_the_target_alone(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    weight, _, _, hessian = case
    assert torch.equal(target_weight(weight, hessian, hessian, 1.0), weight)


def test_channels_that_are_always_zero_do_no_harm(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    weight, scale, inputs, _ = case
    inputs = inputs.clone()
    inputs[:, ::5] = 0
    ours = round_with_feedback(weight, scale, (inputs.T @ inputs).double(), INT4)
    nearest = round_weight(weight, scale, INT4)
    assert error(weight, ours * scale[:, None], inputs) < error(weight, nearest * scale[:, None], inputs)
    nothing = round_with_feedback(weight, scale, torch.zeros(200, 200, dtype=torch.float64), INT4)
    assert torch.equal(nothing, nearest)
