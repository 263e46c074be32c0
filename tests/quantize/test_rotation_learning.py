"""Learned rotations on tiny models with outlier channels: same function, less loss, resumed to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_rotation import Weights, spec_with
from tiny_artifact import Silent
from tiny_learning import Memory, quantized, tiny_weights, windows
from torch import Tensor, nn

from mobileicsa.calibrate.stream import WeightSource
from mobileicsa.core.scheme import find_scheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import FloatWeights, empty_weights
from mobileicsa.quantize import rotation_learning
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rotation import Rotated, rotate, rotates_stream
from mobileicsa.quantize.rotation_learning import STAGE, STEPS, learn_rotations
from mobileicsa.quantize.rotation_math import random_hadamard
from mobileicsa.quantize.rotation_moments import STREAM, VALUE, layer_loss, moments_of

W4A8 = find_scheme("w4a8")
GPTQ = Recipe(name="tiny", weights="gptq", rotation="learned")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, where it does not matter how far learning gets."""
    monkeypatch.setattr(rotation_learning, "STEPS", 8)
    monkeypatch.setattr(rotation_learning, "INTERVAL", 2)


class Planted:
    """A checkpoint's weights with two channels of every norm's output eight times as large."""

    def __init__(self, spec: ModelSpec, weights: FloatWeights) -> None:
        self.spec, self.weights = spec, weights

    def get(self, name: str) -> Tensor:
        tensor = self.weights.get(name)
        if "norm" in name:
            tensor[[3, 11]] *= 8.0
        return tensor

    def fill(self, module: nn.Module, prefix: str) -> None:
        module.load_state_dict({name: self.get(prefix + name) for name in module.state_dict()}, assign=True)


def planted(folder: Path) -> tuple[ModelSpec, Planted]:
    spec, weights = tiny_weights(folder, hidden_size=48)
    return spec, Planted(spec, weights)


@torch.no_grad()
def learned(
    spec: ModelSpec,
    weights: WeightSource,
    *,
    recipe: Recipe = GPTQ,
    prefix: tuple[int, ...] = (1, 5),
    seed: int = 0,
    store: Memory | None = None,
) -> tuple[ModelSpec, Rotated, Rotated, dict[str, Any]]:
    """The rotated spec, the plain rotations' weights, the learned ones', and what the stage says."""
    rotated_spec, plain = rotate(spec, weights)
    ids = windows(24, vocab=spec.vocab_size)
    source, facts = learn_rotations(
        rotated_spec,
        plain,
        prefix,
        ids,
        W4A8,
        recipe,
        seed=seed,
        store=store or Memory(stop_at="never"),
        run="run",
        progress=Silent(),
    )
    assert isinstance(source, Rotated)
    return rotated_spec, plain, source, facts


def loaded(spec: ModelSpec, weights: WeightSource) -> Decoder:
    with empty_weights():
        decoder = Decoder(spec, primitive=False)
    weights.fill(decoder, "")
    return decoder


@torch.no_grad()
def logits_of(spec: ModelSpec, weights: WeightSource) -> Tensor:
    result: Tensor = loaded(spec, weights)(windows(4, vocab=spec.vocab_size))[0]
    return result


def off_orthogonal(matrices: Tensor) -> float:
    """Largest entry of |M M^T - I|."""
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    return float((matrices @ matrices.mT - eye).abs().max())


@pytest.mark.parametrize("weights", ["gptq", "clip"])
def test_learned_rotations_cost_less_on_held_out_windows_than_the_plain_ones(weights: str, tmp_path: Path) -> None:
    recipe = GPTQ.model_copy(update={"weights": weights})
    spec, plain, source, facts = learned(*planted(tmp_path), recipe=recipe)
    assert facts["stopped"] is None
    assert facts["steps_seen"][-1] == STEPS
    assert min(facts["held_out"]) < 0.8 * facts["held_out"][0]
    assert source.stream is not None
    assert off_orthogonal(source.stream) < 1e-5
    assert off_orthogonal(source.values) < 1e-5
    reference = logits_of(spec, plain)
    assert float((logits_of(spec, source) - reference).abs().max()) < 1e-4 * float(reference.abs().max())


def test_the_whole_quantised_model_is_nearer_to_the_float_model(tmp_path: Path) -> None:
    spec, weights = planted(tmp_path)
    losses = {}
    for rotation in ("hadamard", "learned"):
        result = quantized(spec, weights, fields={"rotation": rotation})
        losses[rotation] = result.report["quality"][0]["kl"]
        assert ("rotation" in result.report) == (rotation == "learned")
    assert losses["learned"] < 0.9 * losses["hadamard"]


@torch.no_grad()
def test_the_loss_of_a_turn_is_the_loss_of_the_model_that_is_turned(tmp_path: Path) -> None:
    """Moments turned with the rotation are those of the rotated model."""
    spec, plain = rotate(*planted(tmp_path))
    stream = random_hadamard(spec.hidden_size, seed=5)
    values = torch.stack([random_hadamard(spec.head_dim, seed=7 + index) for index in range(spec.num_layers)])
    ids, layer = windows(6, vocab=spec.vocab_size), 1
    losses = []
    for source, turns in (
        (plain, {STREAM: stream.float(), VALUE: values[layer].float()}),
        (plain.turned(stream, values), {STREAM: torch.eye(spec.hidden_size), VALUE: torch.eye(spec.head_dim)}),
    ):
        model, generator = loaded(spec, source), torch.Generator().manual_seed(0)
        moments = moments_of(model, ids, None, (STREAM, VALUE), generator, lambda: None, feedback=True)
        weights = {n.removesuffix(".weight"): p for n, p in model.layers[layer].named_parameters()}
        losses.append(float(layer_loss(weights, moments[layer], turns, W4A8)))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_head": False, "qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"parallel_residual": True, "num_kv_heads": 1},
        {"norm": "layer", "norm_bias": True},
        {"post_norm": True, "pre_norm": False},
    ],
    ids=str,
)
@pytest.mark.usefixtures("short")
def test_every_family_stays_the_same_function(changes: dict[str, Any]) -> None:
    spec = spec_with(**changes)
    weights = Weights(spec)
    rotated_spec, plain, source, facts = learned(spec, weights, prefix=())
    assert facts["best_step"] > 0
    assert (source.stream is None) == (rotates_stream(spec) is not None)
    assert not torch.allclose(source.values[0], plain.values[0], atol=1e-3)
    assert not torch.allclose(source.values[0], source.values[1], atol=1e-3)
    with torch.no_grad():
        reference = weights.decoder(windows(4, vocab=spec.vocab_size))[0]
    assert float((logits_of(rotated_spec, source) - reference).abs().max()) < 1e-4 * float(reference.abs().max())


@pytest.mark.usefixtures("short")
def test_a_run_that_was_stopped_goes_on_to_the_same_rotations(tmp_path: Path) -> None:
    spec, weights = planted(tmp_path)
    store = Memory(stop_at=STAGE, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        learned(spec, weights, store=store)
    _, _, resumed, told = learned(spec, weights, store=store)
    _, _, again, kept = learned(spec, weights, store=store)
    _, _, whole, facts = learned(spec, weights)
    assert told == kept == facts
    for source in (resumed, again):
        assert torch.equal(source.values, whole.values)
        assert torch.equal(source.get("layers.1.mlp.down_proj.weight"), whole.get("layers.1.mlp.down_proj.weight"))


@pytest.mark.usefixtures("short")
def test_seeds_repeat_and_differ(tmp_path: Path) -> None:
    spec, weights = planted(tmp_path)
    first, second, other = (learned(spec, weights, seed=seed)[2].values for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_loss_that_is_not_finite_leaves_the_plain_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*arguments: Any) -> Tensor:
        loss = layer_loss(*arguments)
        return loss * float("nan") if torch.is_grad_enabled() else loss

    monkeypatch.setattr(rotation_learning, "layer_loss", poisoned)
    _, plain, source, facts = learned(*planted(tmp_path))
    assert "not finite" in facts["stopped"]
    assert facts["best_step"] == 0
    assert torch.equal(source.values, plain.values)
    assert torch.equal(source.get("embed.weight"), plain.get("embed.weight"))


def test_rotations_that_get_worse_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation_learning, "RATE", -0.3)
    _, plain, source, facts = learned(*planted(tmp_path))
    assert facts["held_out"][1] > facts["held_out"][0]
    assert facts["best_step"] == 0
    assert torch.equal(source.values, plain.values)
