"""A row a stage: KL, perplexity and the noisiest edges, against the exported program's own numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_artifact import Silent, prefix_fixed
from tiny_learning import Memory, quantized, tiny_weights, windows
from torch import Tensor

from mobileicsa.calibrate.statistics import fake_quantize
from mobileicsa.core.scheme import find_scheme
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import FloatWeights, empty_weights
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.simulator import prepare_for_eager
from mobileicsa.quantize.distill import held_out
from mobileicsa.quantize.pipeline import Result, quantize_model
from mobileicsa.quantize.recipe import Calibration, Learning, Recipe

BLOCKS = Learning(scope="block", weights="latent", steps=2, batch=1, lr_weights=0.01)
MODEL = Learning(steps=6, batch=2, lr_scales=0.002, lr_gains=0.002)


def logits_of(result: Result, ids: Tensor) -> Tensor:
    """Of the exported program, behind its prefix."""
    model = FrozenModel(result.plan, result.tensors)
    decoder = build_decoder(model, primitive=False)
    prepare_for_eager(decoder)
    with torch.no_grad():
        return torch.cat([decoder(window[None], model.prefix_cache())[0].float() for window in ids])


def perplexity(logits: Tensor, ids: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).exp())


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a16"])
def test_the_rows_figures_are_those_of_the_program_and_of_the_float_model(scheme: str, tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    with prefix_fixed(1, 23):
        result = quantized(spec, weights, scheme=scheme)
    (row,) = result.report["quality"]
    held = windows()[-held_out(96) :]
    assert (row["stage"], row["windows"], row["unseen"]) == ("base", 8, True)
    logits = logits_of(result, held)
    assert row["perplexity"] == pytest.approx(perplexity(logits, held), rel=2e-3)
    with empty_weights():
        teacher = Decoder(spec, primitive=False)
    weights.fill(teacher, "")
    with torch.no_grad():
        prefix = teacher(torch.tensor([result.plan.prefix_ids]))[1]
        expected = torch.cat([teacher(window[None], prefix)[0] for window in held])
    assert row["float_perplexity"] == pytest.approx(perplexity(expected, held), rel=1e-4)
    log_p, log_q = (torch.log_softmax(x, dim=-1) for x in (logits, expected))
    whole = float((log_q.exp() * (log_q - log_p)).sum(-1).mean())
    # Of 259 tokens 64 are told apart: a lower bound, and not a loose one.
    assert 0.2 * whole < row["kl"] < 1.01 * whole


def test_every_stage_has_a_row_with_the_loss_that_learning_saw(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    result = quantized(spec, weights, BLOCKS, MODEL)
    rows, history = result.report["quality"], result.report["learning"][1]
    assert [row["stage"] for row in rows] == ["base", "block", "model"]
    best = history["steps_seen"].index(history["best_step"])
    assert rows[1]["kl"] == pytest.approx(history["held_out"][0], rel=1e-4)
    assert rows[2]["kl"] == pytest.approx(history["held_out"][best], rel=1e-4)
    assert len({row["float_perplexity"] for row in rows}) == 1


def test_the_noisiest_edges_come_first_with_their_own_noise(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    result = quantized(spec, weights, scheme="w8a8")
    worst = result.report["quality"][0]["worst"]
    ratios = [row["sqnr_db"] for row in worst]
    assert len(worst) == 5
    assert ratios == sorted(ratios)
    assert {row["bits"] for row in worst} == {8}
    # Beside what the calibration text showed there; other windows, so only about.
    for row in worst:
        assert row["sqnr_db"] == pytest.approx(result.report["edges"][row["edge"]]["sqnr_db"], abs=4.0)
    named = [e["sqnr_db"] for e in result.report["edges"].values() if e["role"] not in ("internal", "sigmoid")]
    assert ratios[0] < sorted(named)[len(named) // 4]


def test_looking_changes_nothing_and_leaves_no_meter(tmp_path: Path) -> None:
    from mobileicsa.quantize.quality import Judge
    from mobileicsa.quantize.student import Base, Student
    from mobileicsa.quantize.student_layers import RangeEdge

    spec, weights = tiny_weights(tmp_path)
    result = quantized(spec, weights)
    integers = {name: result.tensors[name] for name in result.plan.weights if name != "embed.weight"}
    student = Student(Base(result.plan, result.tensors, integers), Learning())
    judge = Judge(result.plan, weights, windows(), 32, Silent())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    judge.look("model", student)
    judge.look("model", student)
    assert judge.rows[0] == judge.rows[1]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    edges = [edge for edge in student.modules() if isinstance(edge, RangeEdge)]
    assert edges
    assert all(edge.meter is None for edge in edges)


def test_a_meter_sums_the_noise_of_its_edge() -> None:
    from mobileicsa.core.encoding import activation
    from mobileicsa.models.edge import Edge
    from mobileicsa.quantize.student_layers import NoiseMeter, RangeEdge

    encoding = activation(-1.0, 1.0, 8, None)
    edge = RangeEdge(Edge("mlp"), encoding, None, learns=False)
    edge.meter = NoiseMeter()
    x = torch.randn(200, generator=torch.Generator().manual_seed(1)) * 0.4
    with torch.no_grad():
        edge(x[:50])
        edge(x[50:])
    noise = float((fake_quantize(x, encoding) - x).double().square().sum())
    assert edge.meter.noise == pytest.approx(noise, rel=1e-4)
    assert edge.meter.signal == pytest.approx(float(x.double().square().sum()))


def run(weights: FloatWeights, ids: Tensor, **fields: Any) -> dict[str, Any]:
    recipe = Recipe(name="tiny", **fields)
    result = quantize_model(
        weights.spec,
        weights,
        ids,
        find_scheme("w8a8"),
        recipe,
        store=Memory(),
        identity="tiny",
        progress=Silent(),
    )
    row: dict[str, Any] = result.report["quality"][0]
    return row


def test_windows_that_were_calibrated_on_are_called_so(tmp_path: Path) -> None:
    _, weights = tiny_weights(tmp_path)
    for samples, unseen in ((88, True), (89, False), (96, False)):
        row = run(weights, windows(), calibration=Calibration(samples=samples))
        assert (row["windows"], row["unseen"]) == (8, unseen)


def test_windows_with_nothing_to_predict_have_no_perplexity(tmp_path: Path) -> None:
    _, weights = tiny_weights(tmp_path)
    row = run(weights, windows(4, 1), prefix_tokens=1)
    assert (row["perplexity"], row["float_perplexity"]) == (None, None)
    assert math.isfinite(row["kl"])
