"""Learning stages on a tiny random model: exact export, equivalence, gain, resume, refusal to get worse."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_learning
import torch
from tiny_learning import Memory, quantized, tiny_weights, windows
from torch import Tensor

from mobileicsa.core.errors import InputError, SchemeError
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import FloatWeights, empty_weights
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.simulator import prepare_for_eager
from mobileicsa.quantize.distill import float_targets, loss_of, stacked
from mobileicsa.quantize.recipe import Learning, load_recipe
from mobileicsa.quantize.student import Base, Student

ALL = {"lr_ranges": 0.003, "lr_scales": 0.002, "lr_gains": 0.002, "lr_prefix": 0.003}
LATENT = Learning(weights="latent", steps=60, batch=4, lr_weights=0.01, **ALL)
CLIP = Learning(weights="clip", steps=40, batch=4, lr_equivalent=0.01, **ALL)
# Forty steps of four windows end above or below where they began, by the last bits of a processor's bfloat16 products.
STEADY_CLIP = CLIP.model_copy(update={"steps": 96, "batch": 16, "lr_equivalent": 0.003})
BLOCKS = LATENT.model_copy(update={"scope": "block", "steps": 20})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def base_of(folder: Path, learning: Learning, codes: str = "narrow", **changes: object) -> tuple[FloatWeights, Base]:
    """The model quantised without learning, as the first stage gets it."""
    spec, weights = tiny_weights(folder, **changes)
    store, short = Memory(stop_at="never"), learning.model_copy(update={"steps": 1, "scope": "block"})
    result = quantized(spec, weights, short, store=store, fields={"codes": codes})
    real: dict[str, Tensor] = {}
    for name, (_, tensors, _) in store.kept.items():
        if name.startswith("layer-"):
            real |= {key.removeprefix("real."): t for key, t in tensors.items() if key.startswith("real.")}
    plain = quantized(spec, weights, fields={"codes": codes})
    assert set(real) == {name for name in result.plan.weights if "embed" not in name}
    return weights, Base(plain.plan, plain.tensors, real)


def disturb(student: Student) -> None:
    """Move every parameter a little, as learning would."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=random)


def outputs(student: Student, base: Base, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the student, and of the frozen program made of it."""
    frozen = student.freeze(base)
    model = FrozenModel(frozen.plan, frozen.tensors)
    decoder = build_decoder(model, primitive=False)
    prepare_for_eager(decoder)
    with torch.no_grad():
        ours = student.decoder.head(student.hidden(ids))
        return ours, decoder(ids, model.prefix_cache())[0].to(torch.float32)


@pytest.mark.parametrize("codes", ["narrow", "full"])
@pytest.mark.parametrize("learning", [LATENT, CLIP, LATENT.model_copy(update={"weights": "scale", "lr_weights": 0.0})])
def test_what_is_learned_is_what_is_exported(learning: Learning, codes: str, tmp_path: Path) -> None:
    _, base = base_of(tmp_path, learning, codes)
    student = Student(base, learning)
    disturb(student)
    learned = student.freeze(base).tensors
    assert min(int(learned[name].min()) for name in base.real) == (-8 if codes == "full" else -7)
    ours, exported = outputs(student, base, windows(1))
    step = base.plan.edges["head.logits"].scale[0]
    # A value at a tie may round the other way (float32 here, float64 there); a wrong scale would show everywhere.
    assert float((ours - exported).abs().mean()) < 2 * step
    assert float((ours - exported).abs().max()) < 0.02 * float(exported.abs().max())


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}])
def test_equivalent_scalings_leave_the_float_model_as_it_is(changes: dict[str, int], tmp_path: Path) -> None:
    weights, base = base_of(tmp_path, CLIP, **changes)
    student = Student(base, CLIP)
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for sites in student.scalings:
            assert set(sites) == {"attention", "mlp", "value", "product", "query_key"}
            for log in sites.values():
                log += 0.5 * torch.randn(log.shape, generator=random)
    frozen = student.freeze(base)
    with empty_weights():
        plain, scaled = Decoder(base.plan.spec, primitive=False), Decoder(base.plan.spec, primitive=False)
    for decoder in (plain, scaled):
        weights.fill(decoder, "")
    state = {name: frozen.tensors.get(name, tensor) for name, tensor in scaled.state_dict().items() if "norm" in name}
    scaled.load_state_dict(state | frozen.real, strict=False)
    ids = windows(2)
    with torch.no_grad():
        reference, result = plain(ids)[0], scaled(ids)[0]
    assert float((result - reference).abs().max()) < 1e-4 * float(reference.abs().max())


@pytest.mark.parametrize("stages", [(LATENT,), (BLOCKS,), (BLOCKS, LATENT), (STEADY_CLIP,)])
def test_learning_brings_the_model_nearer_to_the_float_model(stages: tuple[Learning, ...], tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    result = quantized(spec, weights, *stages)
    for facts in result.report["learning"]:
        if facts["scope"] == "block":
            assert any(row["kept"] for row in facts["blocks"])
            assert all(row["after"] <= row["before"] for row in facts["blocks"])
        else:
            assert min(facts["held_out"]) < facts["held_out"][0]
    before, after = (_divergence(quantized(spec, weights, *some), weights) for some in ((), stages))
    assert after < before or stages == (STEADY_CLIP,)  # clips start from rounding to nearest, not from error feedback


def _divergence(result: object, weights: FloatWeights) -> float:
    """KL of the exported program to the float model on windows that nothing has seen."""
    plan, tensors = result.plan, result.tensors  # type: ignore[attr-defined]
    base = Base(plan, tensors, {name: tensors[name].float() for name in plan.weights})
    student = Student(base, Learning())
    ids = torch.randint(3, 259, (8, 20), generator=torch.Generator().manual_seed(77))
    targets = float_targets(base, weights, ids, "logits", lambda: None)
    with torch.no_grad():
        return float(loss_of(student, ids, *stacked(targets)))


@pytest.mark.parametrize("stages", [(BLOCKS, LATENT.model_copy(update={"steps": 70}))])
@pytest.mark.parametrize("saves", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_bytes(stages: tuple[Learning, ...], saves: int, tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    whole = quantized(spec, weights, *stages)
    store = Memory(stop_after=saves)
    with pytest.raises(KeyboardInterrupt):
        quantized(spec, weights, *stages, store=store)
    resumed = quantized(spec, weights, *stages, store=store)
    assert resumed.plan.to_json() == whole.plan.to_json()
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_learning_from_one_window_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_learning, "windows", lambda: windows(1))
    spec, weights = tiny_weights(tmp_path)
    assert quantized(spec, weights).report["quality"]
    store = Memory()
    with pytest.raises(InputError, match="one window"):
        quantized(spec, weights, LATENT, store=store)
    assert not store.kept


def test_a_rate_that_diverges_is_stopped_and_nothing_is_lost(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    wild = Learning(weights="scale", steps=70, lr_scales=1.0, lr_gains=1.0)
    result, plain = quantized(spec, weights, wild), quantized(spec, weights)
    (facts,) = result.report["learning"]
    assert facts["stopped"] is not None or facts["best_step"] == 0
    for name, tensor in plain.tensors.items():
        assert torch.equal(result.tensors[name], tensor), name


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    weights, base = base_of(tmp_path, LATENT)
    ids = windows(2)
    targets = float_targets(base, weights, ids, "logits", lambda: None)
    gradients = []
    for save_memory in (False, True):
        student = Student(base, LATENT)
        loss_of(student, ids, *stacked(targets), save_memory=save_memory).backward()
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["learned", "mobilequant", "omniquant"])
def test_bundled_recipes_that_learn_are_valid(name: str) -> None:
    assert load_recipe(name).learn


@pytest.mark.parametrize(
    "stage", [{"weights": "scale", "lr_equivalent": 0.1}, {"lr_weights": 0.1}, {"lr_range": 0.1}, {"steps": 0}]
)
def test_a_stage_that_makes_no_sense_is_refused(stage: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"learn: [{stage}]")
    with pytest.raises(SchemeError, match="learn"):
        load_recipe(str(path))
