"""The grid in tensors is the plan's, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mobileicsa.core.encoding import activation
from mobileicsa.models.edge import Edge
from mobileicsa.quantize.grid_math import Grid, activation_grid
from mobileicsa.quantize.student_layers import RangeEdge

ENDS = st.floats(-1e30, 1e30)


@given(ENDS, ENDS, st.sampled_from([4, 8, 16]), st.sampled_from([None, 0, 2, 6]))
@example(0.0, 0.0, 8, 6)
@example(-0.5, 0.5, 8, None)  # the zero point is a tie
@example(1e-45, 1e-45, 8, 2)
@example(0.0, 255.0, 8, 6)  # already short
def test_the_grid_is_that_of_the_encoding(low: float, high: float, bits: int, mantissa: int | None) -> None:
    expected = Grid.of(activation(low, high, bits, mantissa))
    ends = (torch.tensor(end, dtype=torch.float64) for end in (low, high))
    grid = activation_grid(*ends, bits, mantissa)
    assert (float(grid.scale), float(grid.bottom), float(grid.top)) == (
        expected.scale,
        expected.bottom,
        expected.top,
    )


def test_an_end_that_is_no_number_makes_the_grid_no_number() -> None:
    nan, one = torch.tensor(float("nan"), dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    for low, high in ((nan, one), (-one, nan)):
        assert torch.isnan(torch.as_tensor(activation_grid(low, high, 8).bottom))


@pytest.mark.parametrize("overflow", [1000.0, 88.7])
def test_an_edge_whose_learned_end_overflows_has_no_finite_grid(overflow: float) -> None:
    edge = RangeEdge(Edge("mlp"), activation(-100.0, 3000.0, 8), None, learns=True)
    assert edge.grid(edge.log.detach().exp()) == Grid.of(edge.start)
    edge.log.data[1] = overflow
    assert not torch.isfinite(torch.as_tensor(edge.grid(edge.log.detach().exp()).scale))
