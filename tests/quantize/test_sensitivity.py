"""What the sensitivity pass expects against what rounding really does, on tiny random models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_learning import tiny_weights
from torch import Tensor, nn

from mobileicsa.calibrate.generated import generate_windows
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import find_scheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import FloatWeights, empty_weights
from mobileicsa.quantize.gptq_math import feedback_noise, round_with_feedback
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rounding import fake_quantize_weight, weight_scale
from mobileicsa.quantize.sensitivity import Sensitivity, measure


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def sensitivity(
    spec: ModelSpec, weights: FloatWeights, windows: Tensor, *, prefix: tuple[int, ...] = (), seed: int = 0
) -> Sensitivity:
    recipe = Recipe(name="tiny", weights="nearest")
    return measure(spec, weights, prefix, windows, find_scheme("w4a8"), recipe, seed, lambda total: lambda: None)


def loaded(spec: ModelSpec, weights: FloatWeights) -> Decoder:
    with empty_weights():
        decoder = Decoder(spec, primitive=False)
    weights.fill(decoder, "")
    return decoder


def own_text(spec: ModelSpec, weights: FloatWeights) -> Tensor:
    """Windows behind BOS that the model wrote."""
    windows = generate_windows(loaded(spec, weights), 32, 40, 0, lambda: None)
    return torch.cat((torch.full((len(windows), 1), spec.bos_id), windows), dim=1)


@torch.no_grad()
def test_expected_losses_are_near_those_of_rounding_one_weight_at_a_time(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    windows = own_text(spec, weights)
    found = sensitivity(spec, weights, windows)
    expected = torch.log_softmax(loaded(spec, weights)(windows)[0], dim=-1)
    for losses, bits in ((found.plain, 4), (found.promoted, 8)):
        for name, loss in losses.items():
            decoder = loaded(spec, weights)
            linear = decoder.get_submodule(name.removesuffix(".weight"))
            rounded = fake_quantize_weight(decoder.get_parameter(name), WeightEncoding(bits=bits))
            linear.weight = nn.Parameter(rounded, requires_grad=False)
            ours = torch.log_softmax(decoder(windows)[0], dim=-1)
            divergence = float((expected.exp() * (expected - ours)).sum(-1).mean())
            assert 0.5 < loss / divergence < 2, (name, bits)


def test_promotion_saves_at_every_linear_and_seeds_repeat(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    windows = own_text(spec, weights)
    found = sensitivity(spec, weights, windows)
    assert set(found.plain) == set(found.promoted)
    assert len(found.plain) == 7 * spec.num_layers
    assert all(found.promoted[name] < 0.1 * loss for name, loss in found.plain.items())
    assert found.edges > 0
    assert found.prefix == 0
    assert sensitivity(spec, weights, windows) == found
    assert sensitivity(spec, weights, windows, seed=1) != found


def test_a_prefix_that_the_float_model_has_not_is_a_loss_too(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    windows = own_text(spec, weights)[:, 1:]
    assert sensitivity(spec, weights, windows, prefix=(1,)).prefix == pytest.approx(0, abs=1e-4)
    assert sensitivity(spec, weights, windows, prefix=(1, 40)).prefix > 0.01


def test_feedback_noise_is_that_of_rounding_with_feedback() -> None:
    """On average over rows: the error behind GPTQ's feedback, and the trace where inputs are not correlated."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(48, 48, generator=generator) * torch.linspace(0.1, 2.0, 48)
    inputs = torch.randn(4096, 48, generator=generator) @ mixing
    hessian = (inputs.T @ inputs).double() / len(inputs)
    weight = torch.randn(512, 48, generator=generator)
    encoding = WeightEncoding(bits=8)
    scale = weight_scale(weight, encoding)
    error = (round_with_feedback(weight, scale, hessian, encoding) * scale[:, None] - weight).double()
    measured = float(((error @ hessian) * error).sum(1).div(scale.double().square() / 12).mean())
    assert measured == pytest.approx(feedback_noise(hessian), rel=0.15)
    assert feedback_noise(hessian) < 0.5 * float(hessian.trace())
    diagonal = hessian.diagonal().diag()
    assert feedback_noise(diagonal) == pytest.approx(1.01 * float(hessian.trace()), rel=1e-6)
