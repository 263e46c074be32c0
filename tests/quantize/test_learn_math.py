"""Gradients through roundings, and the distillation loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobileicsa.core.encoding import asymmetric
from mobileicsa.models.edge import Edge
from mobileicsa.program.qdq import QdqEdge
from mobileicsa.quantize.learn_math import on_grid, round_codes, top_divergence, top_targets


def grid(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(low, requires_grad=True), torch.tensor(high, requires_grad=True)


@given(st.floats(-4.0, -0.1), st.floats(0.1, 4.0), st.sampled_from([4, 8]))
def test_the_forward_pass_is_the_exported_rounding(low: float, high: float, bits: int) -> None:
    encoding = asymmetric(low, high, bits)
    x = torch.linspace(-5, 5, 301)
    y = on_grid(x, torch.tensor(low), torch.tensor(high), encoding)
    edge = QdqEdge(Edge("mlp"), encoding)
    # To the last bit but for float32's own: whoever scales first rounds the product, not the number.
    assert torch.allclose(y, edge(x), rtol=1e-6, atol=0)


def test_a_saturated_value_moves_with_its_end_of_the_range_only() -> None:
    low, high = grid(-1.0, 1.0)
    x = torch.tensor([7.0, -7.0], requires_grad=True)
    (on_grid(x, low, high, asymmetric(-1.0, 1.0, 8)) * torch.tensor([3.0, 5.0])).sum().backward()
    assert (float(low.grad), float(high.grad)) == (5.0, 3.0)
    assert x.grad.tolist() == [0.0, 0.0]


def test_a_value_inside_pulls_on_the_step_by_its_rounding_error() -> None:
    low, high = grid(-1.0, 1.0)
    encoding = asymmetric(-1.0, 1.0, 4)
    x = torch.tensor([0.31])
    on_grid(x, low, high, encoding).sum().backward()
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
