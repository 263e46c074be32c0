"""Gradients through roundings, and the distillation loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobileicsa.core.encoding import activation
from mobileicsa.models.edge import Edge
from mobileicsa.program.qdq import QdqEdge
from mobileicsa.quantize import learn_math
from mobileicsa.quantize.grid_math import Grid, activation_grid
from mobileicsa.quantize.learn_math import on_grid, round_codes, scaled_product, top_divergence, top_targets


def grid(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(low, requires_grad=True), torch.tensor(high, requires_grad=True)


@given(st.floats(-4.0, -0.1), st.floats(0.1, 4.0), st.sampled_from([4, 8]))
def test_the_forward_pass_is_the_exported_rounding(low: float, high: float, bits: int) -> None:
    encoding = activation(low, high, bits)
    x = torch.linspace(-5, 5, 301)
    y = on_grid(x, torch.tensor(low), torch.tensor(high), Grid.of(encoding))
    edge = QdqEdge(Edge("mlp"), encoding)
    # To the last bit but for float32's own: whoever scales first rounds the product, not the number.
    assert torch.allclose(y, edge(x), rtol=1e-6, atol=0)


def test_a_saturated_value_moves_with_its_end_of_the_range_only() -> None:
    low, high = grid(-1.0, 1.0)
    x = torch.tensor([7.0, -7.0], requires_grad=True)
    (on_grid(x, low, high, Grid.of(activation(-1.0, 1.0, 8))) * torch.tensor([3.0, 5.0])).sum().backward()
    assert (float(low.grad), float(high.grad)) == (5.0, 3.0)
    assert x.grad.tolist() == [0.0, 0.0]


def test_a_value_inside_pulls_on_the_step_by_its_rounding_error() -> None:
    low, high = grid(-1.0, 1.0)
    encoding = activation(-1.0, 1.0, 4)
    x = torch.tensor([0.31])
    on_grid(x, low, high, Grid.of(encoding)).sum().backward()
    scaled = 0.31 / encoding.scale[0]
    error = round(scaled) - scaled
    assert float(high.grad) == pytest.approx(error / 15, abs=1e-5)
    assert float(low.grad) == pytest.approx(-error / 15, abs=1e-5)


def test_codes_beyond_the_limits_get_no_gradient_only_where_they_clip() -> None:
    for clips, expected in ((True, [1.0, 0.0]), (False, [1.0, 1.0])):
        codes = torch.tensor([2.2, 9.0], requires_grad=True)
        rounded = round_codes(codes, -7, 7, clips=clips)
        rounded.sum().backward()
        assert rounded.tolist() == [2.0, 7.0]
        assert codes.grad.tolist() == expected


def test_with_every_token_kept_the_loss_is_the_whole_divergence_and_with_fewer_a_lower_bound() -> None:
    random = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(6, 40, generator=random), torch.randn(6, 40, generator=random)
    whole = torch.nn.functional.kl_div(
        torch.log_softmax(student, 1), torch.log_softmax(teacher, 1), log_target=True, reduction="batchmean"
    )
    losses = [float(top_divergence(student, *top_targets(teacher, k))) for k in (1, 5, 40)]
    assert losses[2] == pytest.approx(float(whole), rel=1e-4)
    assert 0 < losses[0] <= losses[1] <= losses[2] + 1e-6
    assert float(top_divergence(teacher, *top_targets(teacher, 5))) == pytest.approx(0.0, abs=1e-5)


def test_a_scaled_product_and_its_gradients_are_those_of_the_plain_one() -> None:
    random = torch.Generator().manual_seed(3)
    x, codes, scale = torch.randn(2, 5, 7, generator=random), torch.randn(4, 7, generator=random), torch.rand(4)
    weighting = torch.randn(2, 5, 4, generator=random)
    found = []
    for product in (
        lambda *t: scaled_product(*t, torch.float32),
        lambda x, codes, scale: torch.nn.functional.linear(x, codes * scale[:, None]),
    ):
        tensors = [t.clone().requires_grad_() for t in (x, codes, scale)]
        y = product(*tensors)
        (y * weighting).sum().backward()
        found.append([y.detach(), *(t.grad for t in tensors)])
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


def test_a_short_product_is_near_the_long_one() -> None:
    random = torch.Generator().manual_seed(4)
    x, codes = torch.randn(64, 256, generator=random), torch.randint(-7, 8, (32, 256), generator=random).float()
    long = scaled_product(x, codes, torch.ones(32), torch.float32)
    short = scaled_product(x, codes, torch.ones(32), torch.bfloat16)
    assert 0 < float((short - long).norm() / long.norm()) < 0.004


@pytest.mark.parametrize("k", [1, 5, 39])
def test_the_loss_s_gradient_is_that_of_its_formula(k: int) -> None:
    random = torch.Generator().manual_seed(5)
    indices, log_p = top_targets(torch.randn(6, 40, generator=random), k)
    logits = torch.randn(6, 40, generator=random).requires_grad_()
    top_divergence(logits, indices, log_p).backward()
    again = logits.detach().clone().requires_grad_()
    ours = torch.log_softmax(again, -1).gather(1, indices.to(torch.int64))
    p = log_p.exp()
    rest, our_rest = 1 - p.sum(1), 1 - ours.exp().sum(1)
    ((p * (log_p - ours)).sum(1) + rest * (rest.log() - our_rest.log())).mean().backward()
    assert torch.allclose(logits.grad, again.grad, atol=1e-6)


def test_where_nothing_saturates_a_gradient_passes_unchanged() -> None:
    encoding = activation(-1.0, 1.0, 8)
    x = torch.linspace(-0.9, 0.9, 41, requires_grad=True)
    weighting = torch.arange(41.0)
    (on_grid(x, torch.tensor(-1.0), torch.tensor(1.0), Grid.of(encoding)) * weighting).sum().backward()
    assert torch.equal(x.grad, weighting)


@given(st.floats(-3.0, 0.0), st.floats(0.1, 3.0), st.integers(0, 2**16))
def test_gradients_are_the_same_where_values_can_be_looked_at_and_where_not(low: float, high: float, seed: int) -> None:
    random, found = torch.Generator().manual_seed(seed), []
    x, weighting = torch.randn(3, 50, generator=random), torch.randn(3, 50, generator=random)
    for looks in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learn_math, "immediate", lambda device, looks=looks: looks)
            ends, values = grid(low, high), x.clone().requires_grad_()
            on = activation_grid(*(end.detach().double() for end in ends), 8)
            y = on_grid(values.T, *ends, on)
            (y * weighting.T).sum().backward()
            found.append((y.detach(), values.grad, *(end.grad for end in ends)))
    for here, there in zip(*found, strict=True):
        assert torch.allclose(here, there, rtol=1e-5, atol=1e-5)
    at_a_rail = (found[0][0] - x.T).abs() > learn_math.MOST_ERROR * float(on.scale)
    assert torch.equal(found[0][1].T == 0, at_a_rail)
