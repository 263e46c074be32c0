"""An adapter in a plan's basis is the checkpoint's adapter: the same function, whatever was folded into the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_artifact import Silent, prefix_fixed
from tiny_learning import quantized, tiny_weights, windows
from torch import Tensor, nn

from mobileicsa.artifact.adapters import in_basis, prepare
from mobileicsa.calibrate.statistics import values_of
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.adapter import LowRank, PeftAdapter, linear_shapes
from mobileicsa.models.adapter_config import read_config
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import FloatWeights
from mobileicsa.program.frozen import FrozenModel, real_decoder
from mobileicsa.quantize.basis import IN, OUT, Basis
from mobileicsa.quantize.pipeline import Result
from mobileicsa.quantize.recipe import Learning
from mobileicsa.quantize.student import TABLES, Base, Student

EQUIVALENT = Learning(weights="clip", lr_equivalent=0.01)
SMOOTHED = {"smoothing": "search", "alphas": (0.5,)}
# Fields of the recipe, and whether learned scalings come on top.
RECIPES: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing folded": ({}, False),
    "smoothed": (SMOOTHED, False),
    "rotated": ({"rotation": "hadamard"}, False),
    "rotated and smoothed": ({"rotation": "hadamard", **SMOOTHED}, False),
    "learned scalings": (SMOOTHED, True),
    "learned scalings, rotated": ({"rotation": "hadamard"}, True),
}


def adapter(spec: ModelSpec, rank: int = 3) -> PeftAdapter:
    random = torch.Generator().manual_seed(4)
    updates = {
        module: LowRank(
            0.1 * torch.randn(rank, shape[1], generator=random), 0.3 * torch.randn(shape[0], rank, generator=random)
        )
        for module, shape in linear_shapes(spec).items()
    }
    config = read_config({"peft_type": "LORA", "r": rank}, "test")
    return PeftAdapter(name="tiny", sha256="0", config=config, updates=updates, notes=())


@pytest.fixture(scope="module", params=RECIPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Any, Result]:
    fields, learns = RECIPES[request.param]
    spec, weights = tiny_weights(tmp_path_factory.mktemp("basis"))
    given = {"weights": "nearest", "ranges": "minmax", "smoothing": "off", **fields}
    with prefix_fixed(1, 86):
        result = quantized(spec, weights, scheme="w8a8", fields=given)
    return spec, weights, learned(result, weights) if learns else result


def learned(result: Result, weights: FloatWeights) -> Result:
    """The result with every equivalent scaling that a student has at a random value, as if it had learned that."""
    basis = Basis(result.plan.spec, result.basis)
    real = {
        name: result.tensors[name] * result.tensors[f"{name}.scale"][:, None]
        for name in result.plan.weights
        if name not in TABLES
    }
    for name in real:
        if name.startswith("layers."):
            weight = weights.get(name)
            whole = basis.update(name.removesuffix(".weight"), LowRank(weight, torch.eye(weight.shape[0])))
            real[name] = whole.up @ whole.down
    factors = {name: tensor for name, tensor in result.basis.items() if name.endswith((IN, OUT))}
    base = Base(result.plan, result.tensors, real, {}, factors)
    student = Student(base, EQUIVALENT)
    random = torch.Generator().manual_seed(6)
    for sites in student.scalings:
        for log in sites.values():
            log.data = 0.4 * torch.randn(log.shape, generator=random)
    after = student.freeze(base)
    return replace(result, plan=after.plan, tensors=after.tensors, basis={**result.basis, **after.factors})


def test_each_linear_of_the_plan_follows_from_the_checkpoints_by_the_basis(made: Any) -> None:
    """The kept factors are those of the weights themselves: half a step of rounding is all that differs."""
    _, weights, result = made
    basis = Basis(result.plan.spec, result.basis)
    for name in result.plan.weights:
        if not name.startswith("layers."):
            continue
        weight, linear = weights.get(name), name.removesuffix(".weight")
        whole = basis.update(linear, LowRank(weight, torch.eye(weight.shape[0])))
        scale = result.tensors[f"{name}.scale"][:, None]
        wrong = (whole.up @ whole.down - result.tensors[name] * scale).abs() / scale
        # A clipped range (learned) may cut off the largest weights of a row.
        assert float(torch.quantile(wrong, 0.95)) <= 0.51, name
        assert float(wrong.median()) < 0.3, name


def float_logits(spec: ModelSpec, weights: FloatWeights, added: dict[str, Tensor], ids: Tensor) -> Tensor:
    decoder = Decoder(spec, primitive=False)
    weights.fill(decoder, "")
    for linear, update in added.items():
        parameter = decoder.get_parameter(f"{linear}.weight")
        parameter.data = parameter + update
    return decoder(ids)[0]


@torch.no_grad()
def test_base_and_adapter_are_the_merged_float_model(made: Any) -> None:
    """Nothing rounded but the base's 8-bit weights, which move the logits without the adapter as much as with it."""
    spec, weights, result = made
    model, peft = FrozenModel(result.plan, result.tensors), adapter(spec)
    moved = in_basis(model, result.basis, peft)
    ids = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(8))
    added = {n: (moved.tensors[f"{n}.a"] @ moved.tensors[f"{n}.b"]).T for n in moved.linears}
    merged = {n: update.up @ update.down for n, update in peft.canonical(spec).items()}
    plain, with_it = float_logits(spec, weights, {}, ids), float_logits(spec, weights, merged, ids)
    ours, ours_with_it = (real_decoder(model, part)(ids)[0] for part in ({}, added))
    base_error, error = (ours - plain).square().mean(), (ours_with_it - with_it).square().mean()
    assert (with_it - plain).square().mean() > 20 * error
    assert error < 4 * base_error + 1e-6


class Merged:
    """The weights with an adapter's updates added."""

    def __init__(self, spec: ModelSpec, weights: FloatWeights, peft: PeftAdapter) -> None:
        self.weights, self.updates = weights, peft.canonical(spec)

    def get(self, name: str) -> Tensor:
        update = self.updates.get(name.removesuffix(".weight"))
        return self.weights.get(name) if update is None else self.weights.get(name) + update.up @ update.down

    def fill(self, module: nn.Module, prefix: str) -> None:
        # A tied head is asked for by both names.
        module.load_state_dict({name: self.get(prefix + name) for name in module.state_dict()}, assign=True)


@pytest.mark.parametrize("rotation", ["off", "hadamard"])
def test_the_prefix_has_the_rows_of_the_merged_model(rotation: str, tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path / "model")
    peft = adapter(spec)
    given = {"weights": "nearest", "ranges": "minmax", "smoothing": "off", "rotation": rotation}
    with prefix_fixed(1, 86):
        base = quantized(spec, weights, scheme="w8a8", fields=given)
        merged = quantized(spec, Merged(spec, weights, peft), scheme="w8a8", fields=given)
    model = FrozenModel(base.plan, base.tensors)
    (made,) = prepare(model, base.basis, [peft], windows(4).tolist(), 1.0, Silent())
    for index in range(spec.num_layers):
        for kind in ("key", "value"):
            name, edge = f"prefix.{index}.{kind}", f"layers.{index}.attn.{kind[0]}_out"
            rows, plain, wanted = (
                values_of(tensors[name], plan.edges[edge])
                for tensors, plan in (
                    (made.tensors, base.plan),
                    (base.tensors, base.plan),
                    (merged.tensors, merged.plan),
                )
            )
            assert (rows - wanted).abs().mean() < 0.35 * (plain - wanted).abs().mean(), name
