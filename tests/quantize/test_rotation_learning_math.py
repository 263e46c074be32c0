"""Learned rotations' mathematics: they stay orthogonal, and the expected loss is that of rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mobileicsa.core.plan import WeightEncoding
from mobileicsa.quantize.gptq_math import feedback_noise
from mobileicsa.quantize.rotation_learning_math import (
    Turning,
    cayley,
    feedback_variance,
    grid_error,
    least_clip,
    turned,
    turned_both,
    turned_diagonal,
)
from mobileicsa.quantize.rotation_math import random_hadamard
from mobileicsa.quantize.rounding import round_weight


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy_rows() -> Tensor:
    """Gaussian rows, the first with one far outlier each, the last with heavy tails."""
    rows = normal(48, 192)
    rows[:16, 0] = 30.0
    rows[32:] *= normal(16, 192, seed=1).exp()
    return rows


def test_a_cayley_step_is_a_rotation() -> None:
    skew = normal(3, 24, 24).double()
    matrix = cayley(skew - skew.mT)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(24, dtype=torch.float64).expand(3, -1, -1), atol=1e-10)
    assert float(torch.linalg.det(matrix).min()) > 0


def test_two_hundred_steps_keep_matrices_orthogonal_and_turn_rows_by_the_rate() -> None:
    turning = Turning.at_identity(2, 48)
    turning.advance(normal(2, 48, 48), 0.01)
    angle = (turning.matrices - torch.eye(48, dtype=torch.float64)).norm(dim=2).mean()
    assert angle == pytest.approx(0.01, rel=0.05)
    for step in range(200):
        turning.advance(normal(2, 48, 48, seed=step), 0.1)
    gram = turning.matrices @ turning.matrices.mT
    assert float((gram - torch.eye(48, dtype=torch.float64)).abs().max()) < 1e-5


def test_descent_finds_the_rotation_that_was_hidden() -> None:
    """Procrustes: the least ||A U - B||^2 with B = A times a rotation not far from the identity."""
    plain = normal(64, 12).double()
    skew = 0.2 * normal(12, 12, seed=1).double()
    hidden = cayley(skew - skew.T)
    turning = Turning.at_identity(1, 12)
    for step in range(200):
        gradient = 2 * plain.T @ (plain @ turning.matrices - plain @ hidden)
        turning.advance(gradient, 0.05 * (1 - step / 200))
    assert float((turning.matrices[0] - hidden).abs().max()) < 0.01


@pytest.mark.parametrize("half_levels", [7.0, 127.0])
def test_the_clip_is_the_one_that_costs_least(half_levels: float) -> None:
    rows = heavy_rows()
    clips = rows.abs().amax(dim=1, keepdim=True) * torch.linspace(0.01, 1.0, 2000)
    beyond = (rows.abs()[:, None] - clips[:, :, None]).clamp(min=0)
    errors = clips.square() / (12 * half_levels**2) + beyond.square().mean(dim=2)
    assert torch.allclose(grid_error(rows, half_levels), errors.amin(dim=1), rtol=2e-3)


def test_the_expected_error_is_that_of_rounding() -> None:
    rows, encoding = heavy_rows(), WeightEncoding(bits=4)
    scale = least_clip(rows, encoding.qmax) / encoding.qmax
    rounded = round_weight(rows, scale, encoding) * scale[:, None]
    ratio = (rounded - rows).square().mean(dim=1) / grid_error(rows, encoding.qmax)
    assert float(ratio[:32].mean()) == pytest.approx(1.0, abs=0.2)
    assert float(ratio.min()) > 0.4
    assert float(ratio.max()) < 1.6


def test_what_feedback_leaves_is_what_gptq_leaves() -> None:
    inputs = normal(400, 24) @ normal(24, 24, seed=1)
    hessian = inputs.T @ inputs / 400
    assert float(feedback_variance(hessian)) == pytest.approx(feedback_noise(hessian), rel=1e-3)


def test_turning_by_heads_is_turning_by_the_block_diagonal_matrix() -> None:
    value, stream = random_hadamard(6).float(), random_hadamard(18, seed=1).float()
    whole, matrix = torch.block_diag(value, value, value), normal(18, 18)
    assert torch.allclose(turned(matrix, value), matrix @ whole, atol=1e-5)
    assert torch.allclose(turned_both(matrix, stream, value), stream.T @ matrix @ whole, atol=1e-5)
    blocks = torch.stack([matrix[i : i + 6, i : i + 6] for i in (0, 6, 12)])
    expected = (whole.T @ torch.block_diag(*blocks) @ whole).diagonal()
    assert torch.allclose(turned_diagonal(blocks, value), expected, atol=1e-5)
    assert torch.equal(turned_diagonal(matrix[:, 0, None, None], None), matrix[:, 0])
