"""Linears of 4 and of 8 bits in one model: within the budget, through every stage, resumed to the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_learning import Memory, quantized, tiny_weights, windows
from torch import Tensor, nn

from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.scheme import find_scheme
from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import FloatWeights
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.simulator import prepare_for_eager
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.distill import float_targets, loss_of, stacked
from mobileicsa.quantize.mixed import chosen
from mobileicsa.quantize.packed import PROMOTED_BITS, bits_of, packed_bytes, promotable, weight_shapes
from mobileicsa.quantize.pipeline import Result
from mobileicsa.quantize.recipe import Learning
from mobileicsa.quantize.sensitivity import Sensitivity
from mobileicsa.quantize.student import Base, Student

W4A8 = find_scheme("w4a8")
LATENT = Learning(weights="latent", steps=8, batch=4, lr_weights=0.01, lr_scales=0.002, lr_ranges=0.003, lr_gains=0.002)
CLIP = Learning(weights="clip", steps=8, batch=4, lr_scales=0.002, lr_equivalent=0.01)
BLOCKS = LATENT.model_copy(update={"scope": "block", "steps": 4})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def bounds(spec: ModelSpec) -> tuple[int, int]:
    return packed_bytes(spec, bits_of(spec, W4A8)), packed_bytes(spec, bits_of(spec, W4A8, promotable(spec)))


def half(spec: ModelSpec) -> Limits:
    """A budget halfway between all linears at 4 and all at 8 bits."""
    return Limits(budget_bytes=sum(bounds(spec)) // 2)


def stored_bytes(result: Result) -> int:
    """Counted from what the model really holds."""
    total = 0
    for name, weight in result.plan.weights.items():
        codes = result.tensors[name]
        assert int(codes.abs().max()) <= weight.qmax
        total += codes.numel() * weight.bits // 8 + 4 * result.tensors[f"{name}.scale"].numel()
    return total


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1}])
def test_packed_weights_are_as_large_as_said_and_within_the_budget(changes: dict[str, int], tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path, **changes)
    limits = half(spec)
    result = quantized(spec, weights, limits=limits)
    mixed = result.report["mixed"]
    assert stored_bytes(result) == mixed["packed_bytes"] <= limits.budget_bytes
    assert (mixed["packed_bytes_least"], mixed["packed_bytes_most"]) == bounds(spec)
    assert set(result.plan.promoted) == {row["weight"] for row in mixed["promoted"]}
    assert 0 < len(result.plan.promoted) < mixed["candidates"]
    assert result.plan.provenance["limits"] == limits.to_json()


def test_the_scheme_alone_has_the_least_size(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    result = quantized(spec, weights)
    assert stored_bytes(result) == bounds(spec)[0]
    assert result.plan.promoted == []
    assert "mixed" not in result.report


def test_more_bytes_promote_more_and_lose_less(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    least, most = bounds(spec)
    before: set[str] = set()
    expected, divergence = float("inf"), float("inf")
    for budget in (least, (2 * least + most) // 3, most):
        result = quantized(spec, weights, limits=Limits(budget_bytes=budget))
        assert before <= set(result.plan.promoted)
        before = set(result.plan.promoted)
        assert result.report["mixed"]["predicted_increase"] < expected
        expected = result.report["mixed"]["predicted_increase"]
        now = _divergence(result, weights)
        assert now < divergence
        divergence = now
    assert before == set(promotable(spec))


@torch.no_grad()
def _divergence(result: Result, weights: FloatWeights) -> float:
    """KL of the exported program to the float model behind the same prefix, on windows that nothing has seen."""
    base = Base(result.plan, result.tensors, {name: result.tensors[name].float() for name in result.plan.weights})
    ids = torch.randint(3, 259, (8, 20), generator=torch.Generator().manual_seed(77))
    return float(
        loss_of(Student(base, Learning()), ids, *stacked(float_targets(base, weights, ids, "logits", lambda: None)))
    )


@pytest.mark.parametrize("fields", [{"rotation": "hadamard", "smoothing": "search"}, {"weights": "clip"}])
def test_every_stage_before_learning_takes_both_widths(fields: dict[str, str], tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    result = quantized(spec, weights, limits=Limits(max_ppl_increase=0.3), prefix_tokens=0, fields=fields)
    widths = {weight.bits for name, weight in result.plan.weights.items() if name.startswith("layers.")}
    assert widths == {4, 8}
    for name, weight in result.plan.weights.items():
        largest = int(result.tensors[name].abs().max())
        assert (largest > 7) == (weight.bits == 8), name


@pytest.mark.parametrize("stages", [(LATENT,), (CLIP,), (BLOCKS, LATENT)], ids=["latent", "clip", "blocks, latent"])
def test_learned_linears_of_both_widths_are_exported_as_they_were_learned(
    stages: tuple[Learning, ...], tmp_path: Path
) -> None:
    spec, weights = tiny_weights(tmp_path)
    store = Memory(stop_at="never")
    result = quantized(spec, weights, *stages, store=store, limits=half(spec))
    plain = quantized(spec, weights, limits=half(spec))
    assert result.plan.weights == plain.plan.weights
    real = {
        key.removeprefix("real."): tensor
        for name, (_, tensors, _) in store.kept.items()
        if name.startswith("layer-")
        for key, tensor in tensors.items()
        if key.startswith("real.")
    }
    base = Base(plain.plan, plain.tensors, real)
    student = Student(base, stages[0])
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    ours, exported = _outputs(student, base, windows(1))
    step = plain.plan.edges["head.logits"].scale[0]
    assert float((ours - exported).abs().mean()) < 2 * step
    for name, weight in result.plan.weights.items():
        assert int(result.tensors[name].abs().max()) <= weight.qmax


@torch.no_grad()
def _outputs(student: Student, base: Base, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the student, and of the frozen program made of it."""
    frozen = student.freeze(base)
    model = FrozenModel(frozen.plan, frozen.tensors)
    decoder = build_decoder(model, primitive=False)
    prepare_for_eager(decoder)
    return student.decoder.head(student.hidden(ids)), decoder(ids, model.prefix_cache())[0].to(torch.float32)


@pytest.mark.parametrize(("stop_at", "stop_after"), [("sensitivity", 1), ("layer", 1), ("learn", 1)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(stop_at: str, stop_after: int, tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    limits = half(spec)
    whole = quantized(spec, weights, BLOCKS, limits=limits)
    store = Memory(stop_at, stop_after)
    with pytest.raises(KeyboardInterrupt):
        quantized(spec, weights, BLOCKS, limits=limits, store=store)
    measured = store.kept["sensitivity"]
    resumed = quantized(spec, weights, BLOCKS, limits=limits, store=store)
    assert store.kept["sensitivity"] is measured  # not a second time
    assert resumed.report["mixed"] == whole.report["mixed"]
    assert resumed.plan.to_json() == whole.plan.to_json()
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_other_limits_are_another_run(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    store, least = Memory(), bounds(spec)[0]
    first = quantized(spec, weights, limits=Limits(budget_bytes=least), store=store)
    second = quantized(spec, weights, limits=half(spec), store=store)
    assert first.plan.promoted == []
    assert second.plan.promoted != []


def even(spec: ModelSpec, edges: float = 0.0) -> Sensitivity:
    """Each linear loses 0.01 at 4 bits and nothing at 8."""
    names = promotable(spec)
    return Sensitivity(plain=dict.fromkeys(names, 0.01), promoted=dict.fromkeys(names, 0.0), edges=edges, prefix=0.0)


def test_the_budget_wins_over_the_loss_and_says_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, _ = tiny_weights(tmp_path)
    least, most = bounds(spec)
    free = chosen(spec, W4A8, (), Limits(max_ppl_increase=0.05), even(spec))
    assert free.report["shortfall"] is None
    assert free.report["predicted_increase"] <= 0.05
    tight = Limits(budget_bytes=(3 * least + most) // 4, max_ppl_increase=0.05)
    bound = chosen(spec, W4A8, (), tight, even(spec))
    assert bound.report["packed_bytes"] <= tight.budget_bytes < free.report["packed_bytes"]
    assert bound.promoted < free.promoted
    assert f"--budget-bytes {tight.budget_bytes}" in bound.report["shortfall"]
    assert bound.report["shortfall"] in caplog.text
    roomy = chosen(spec, W4A8, (), Limits(budget_bytes=most, max_ppl_increase=0.05), even(spec))
    assert roomy.promoted == free.promoted


def test_a_loss_of_activations_cannot_be_promoted_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec, _ = tiny_weights(tmp_path)
    found = chosen(spec, W4A8, (), Limits(max_ppl_increase=0.05), even(spec, edges=0.2))
    assert found.promoted == set(promotable(spec))
    assert "activations" in found.report["shortfall"]
    assert found.report["shortfall"] in caplog.text


def test_inputs_get_16_bits_when_weights_are_not_enough(tmp_path: Path) -> None:
    spec, _ = tiny_weights(tmp_path)
    losses = {"layers.0.mlp.product": 0.2, "layers.1.attn.out": 0.01, "layers.1.mlp.product": 0.1}
    found = replace(even(spec, edges=0.4), inputs=losses)
    for limits, wide in (
        (Limits(max_ppl_increase=0.25, wide_inputs=True), ("layers.0.mlp.product",)),
        (Limits(max_ppl_increase=0.1, wide_inputs=True), tuple(sorted(losses))),
        (Limits(max_ppl_increase=0.25), ()),  # no target for it
        (Limits(budget_bytes=bounds(spec)[1], wide_inputs=True), ()),  # no loss is asked for
        (Limits(max_ppl_increase=0.8, wide_inputs=True), ()),  # weights are enough
    ):
        assert chosen(spec, W4A8, (), limits, found).wide == wide, limits
    assert (
        "other activations"
        in chosen(spec, W4A8, (), Limits(max_ppl_increase=0.01, wide_inputs=True), found).report["shortfall"]
    )
    eight = chosen(spec, find_scheme("w8a8"), (), Limits(max_ppl_increase=0.45, wide_inputs=True), found)
    assert (eight.promoted, eight.wide) == (frozenset(), ("layers.0.mlp.product",))


@pytest.mark.parametrize("scheme", ["w4a8", "w8a8"])
def test_16_bit_inputs_go_through_every_stage(scheme: str, tmp_path: Path) -> None:
    """Encoded so, rounded so, learned beside: and the model comes nearer to float."""
    spec, weights = tiny_weights(tmp_path)
    stages = (BLOCKS, CLIP) if scheme == "w4a8" else (CLIP,)
    limits = Limits(max_ppl_increase=1e-6, wide_inputs=True)
    # A prefix could make a random model better than it was: nothing would be left to gain.
    rotation = "hadamard" if scheme == "w4a8" else "off"
    more: dict[str, Any] = {"prefix_tokens": 0, "fields": {"smoothing": "search", "rotation": rotation}}
    plain = quantized(spec, weights, *stages, scheme=scheme, **more)
    result = quantized(spec, weights, *stages, scheme=scheme, limits=limits, **more)
    wide = [row["edge"] for row in result.report["mixed"]["inputs"]]
    assert len(wide) == result.report["mixed"]["input_candidates"] == 4 * spec.num_layers
    assert list(result.plan.scheme.wide_edges) == sorted(wide)
    assert {result.plan.edges[name].bits for name in wide} == {16}
    assert {plain.plan.edges[name].bits for name in wide} == {8}
    assert QuantPlan.from_json(json.loads(json.dumps(result.plan.to_json()))) == result.plan
    if scheme == "w8a8":  # else the weights gain too
        assert _divergence(result, weights) < _divergence(plain, weights)


def test_learning_is_expected_to_leave_less_and_changes_no_order(tmp_path: Path) -> None:
    spec, _ = tiny_weights(tmp_path)
    limits = half(spec)
    plain, learned = (chosen(spec, W4A8, stages, limits, even(spec, edges=0.1)) for stages in ((), (LATENT,)))
    assert learned.promoted == plain.promoted
    assert learned.report["predicted_increase"] < plain.report["predicted_increase"]


def test_the_names_are_those_of_the_decoder(tmp_path: Path) -> None:
    spec = replace(tiny_weights(tmp_path)[0], tied_head=False)
    names = set(weight_shapes(spec))
    assert names - set(promotable(spec)) == {"embed.weight", "head.proj.weight"}
    assert set(bits_of(spec, W4A8, promotable(spec)).values()) == {PROMOTED_BITS}


PARALLEL: dict[str, Any] = {"norm": "layer", "norm_bias": True, "qkv_bias": True, "parallel_residual": True}
POSTED: dict[str, Any] = {
    "post_norm": True,
    "embed_scale": 4.0,
    "attention_softcap": 20.0,
    "logit_softcap": 10.0,
    "layers": (LayerSpec(sliding_window=5), LayerSpec()),
}


@pytest.mark.parametrize("changes", [PARALLEL, POSTED], ids=["parallel residual", "norms behind, windows, caps"])
def test_other_kinds_of_blocks_are_mixed_too(changes: dict[str, Any], tmp_path: Path) -> None:
    spec = replace(tiny_weights(tmp_path)[0], **changes)
    result = quantized(spec, OwnWeights(spec), limits=half(spec), fields={"smoothing": "search"})
    assert result.report["mixed"]["packed_bytes"] <= half(spec).budget_bytes
    assert {weight.bits for name, weight in result.plan.weights.items() if name.startswith("layers.")} == {4, 8}


class OwnWeights:
    """A decoder's own random weights as a source."""

    def __init__(self, spec: ModelSpec) -> None:
        self.decoder = Decoder(spec, primitive=False)
        random = torch.Generator().manual_seed(1)
        for name, parameter in self.decoder.named_parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random) + ("norm.weight" in name)
        if spec.tied_head:
            self.decoder.head.proj.weight = self.decoder.embed.weight

    def get(self, name: str) -> Tensor:
        return self.decoder.get_parameter(name).detach().clone()

    def fill(self, module: nn.Module, prefix: str) -> None:
        module.load_state_dict({name: self.get(prefix + name) for name in module.state_dict()}, assign=True)
