"""Loss by position: buckets against direct sums, a drift that is put in is found, and noise is not one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_artifact import TEXT

from mobileicsa.artifact.model import FloatModel, QuantizedModel
from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.evaluate import by_position
from mobileicsa.evaluate.by_position import LEAST_WINDOWS, ByPosition, bucket_edges
from mobileicsa.evaluate.perplexity import evaluate
from mobileicsa.program import simulator as eager

LENGTH = 2047


@pytest.fixture(scope="module")
def simulator(artifact: Path) -> QuantizedModel:
    return QuantizedModel.from_pretrained(artifact)


@pytest.fixture(scope="module")
def float_model(artifact: Path) -> FloatModel:
    return FloatModel.from_pretrained(artifact.parent / "checkpoint")


@pytest.fixture
def short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """0-7, 8-15, 16-31 ..., as the tiny model's context is short."""
    monkeypatch.setattr(by_position, "FIRST_END", 8)


def judged(slope: float, offset: float = 0.0, noise: float = 0.0, windows: int = 8) -> dict[str, Any]:
    """The verdict on a difference of offset + slope * log2(1 + position) and noise of every token."""
    random = torch.Generator().manual_seed(3)
    found = ByPosition(LENGTH, 0, compared=True)
    growth = offset + slope * (torch.arange(LENGTH) + 1.0).log2()
    for _ in range(windows):
        found.next_window()
        reference = 3.0 + torch.randn(LENGTH, generator=random)
        ours = reference + growth + noise * torch.randn(LENGTH, generator=random)
        for start in range(0, LENGTH, 100):
            part = slice(start, start + 100)
            found.add(start, ours[part], reference[part], growth[part].abs())
    return found.result()


def test_buckets_double_up_to_the_end_of_the_window() -> None:
    assert bucket_edges(LENGTH) == [0, 128, 256, 512, 1024, 2047]
    assert bucket_edges(256) == [0, 128, 256]
    assert bucket_edges(90) == [0, 90]
    rows = judged(0.0)["buckets"]
    assert [(row["from"], row["to"], row["tokens"]) for row in rows[::4]] == [(0, 127, 1024), (1024, 2046, 8 * 1023)]


def test_a_drift_that_is_put_in_is_found_with_its_size() -> None:
    found = judged(0.02, noise=0.3)
    assert found["drift"] is True
    assert found["slope"] == pytest.approx(0.02, abs=3 * found["slope_standard_error"])
    # The divergence that was put in has no noise.
    assert found["kl_slope"] == pytest.approx(0.02, rel=0.01)
    assert found["kl_slope_standard_error"] < 1e-6
    assert found["buckets"][-1]["difference"] == pytest.approx(0.02 * 10.5, abs=0.02)


@pytest.mark.parametrize("slope", [0.0, 0.004, -0.02])
def test_a_loss_that_is_as_much_higher_everywhere_or_falls_does_not_drift(slope: float) -> None:
    found = judged(slope, offset=0.3, noise=0.01)
    assert found["drift"] is False
    assert found["slope"] == pytest.approx(slope, abs=1e-3)
    assert "note" not in found


def test_a_slope_within_two_standard_errors_is_no_drift_but_is_told() -> None:
    found = judged(0.01, noise=5.0)
    assert found["drift"] is False
    assert found["slope_standard_error"] > 0.01
    assert "more windows" in found["note"]


def test_the_standard_error_falls_as_that_of_independent_windows() -> None:
    few, many = judged(0.0, noise=1.0, windows=10), judged(0.0, noise=1.0, windows=160)
    # Of 1,023 tokens a window, each with noise of one nat.
    assert many["buckets"][-1]["standard_error"] == pytest.approx(1 / math.sqrt(160 * 1023), rel=0.2)
    assert few["buckets"][-1]["standard_error"] > 2 * many["buckets"][-1]["standard_error"]


def test_too_few_windows_and_too_short_ones_are_not_judged() -> None:
    found = judged(0.1, windows=LEAST_WINDOWS - 1)
    assert (found["drift"], found["slope_standard_error"], found["kl_slope_standard_error"]) == (None, None, None)
    assert found["buckets"][0]["standard_error"] is None
    short = ByPosition(100, 1, compared=True)
    short.next_window()
    short.add(1, torch.ones(99), torch.ones(99), torch.zeros(99))
    assert (short.result()["drift"], short.result()["slope"]) == (None, None)
    assert "first 128" in short.result()["note"]


@pytest.mark.usefixtures("short_buckets")
def test_buckets_add_up_to_the_perplexities_and_the_divergence(
    float_model: FloatModel, simulator: QuantizedModel
) -> None:
    result = evaluate(simulator, TEXT, window=40, max_windows=5, reference=float_model, by_position=True)
    found = result["by_position"]
    rows, tokens = found["buckets"], result["tokens"]
    assert [row["from"] for row in rows] == [0, 8, 16, 32]
    assert sum(row["tokens"] for row in rows) == tokens == 5 * 39

    def mean(key: str) -> float:
        return float(sum(row["tokens"] * row[key] for row in rows)) / tokens

    assert math.exp(mean("loss")) == pytest.approx(result["perplexity"], rel=1e-6)
    assert math.exp(mean("reference_loss")) == pytest.approx(result["reference_perplexity"], rel=1e-6)
    assert mean("difference") == pytest.approx(math.log(result["ratio"]), abs=1e-6)
    assert mean("kl_to_reference") == pytest.approx(result["kl_to_reference"], rel=1e-5)
    assert found["drift"] in (True, False)


@pytest.mark.usefixtures("short_buckets")
def test_without_a_reference_there_are_losses_and_no_verdict(float_model: FloatModel) -> None:
    result = evaluate(float_model, TEXT, window=33, max_windows=2, by_position=True)
    ids = float_model.tokenizer.encode(TEXT)
    losses = []
    for start in (0, 32):
        window = torch.tensor([1, *ids[start : start + 32]])
        with torch.no_grad():
            logits = float_model.decoder(window[None])[0][0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="none"))
    rows = result["by_position"]["buckets"]
    expected = torch.stack(losses)[:, 8:16].mean()
    assert rows[1]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert "drift" not in result["by_position"]
    assert rows[1].keys() == {"from", "to", "tokens", "log2_position", "loss"}


def test_only_whole_windows_count(float_model: FloatModel) -> None:
    result = evaluate(float_model, "A fox and a dog. " * 5, window=33, by_position=True)
    assert (result["windows"], result["tokens"]) == (2, 64)


def test_what_it_cannot_do_is_refused(float_model: FloatModel) -> None:
    with pytest.raises(UsageError, match="--stride"):
        evaluate(float_model, TEXT, window=16, stride=4, by_position=True)
    with pytest.raises(InputError, match="6 tokens are less than one window of 16"):
        evaluate(float_model, "A fox.", window=16, by_position=True)


def test_a_long_window_runs_in_pieces_and_gives_the_same(
    float_model: FloatModel, simulator: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = simulator.tokenizer.encode(TEXT)[:60]
    whole = [model.logits(ids) for model in (float_model, simulator)]
    measured = evaluate(simulator, TEXT, window=61, max_windows=2, reference=float_model)
    monkeypatch.setattr(eager, "PASS_TOKENS", 7)
    for model, expected in zip((float_model, simulator), whole, strict=True):
        pieces = list(model.logit_chunks(ids))
        assert max(len(piece) for piece in pieces) == 7
        assert torch.cat(pieces).shape == expected.shape == (60, 259)
        assert torch.allclose(torch.cat(pieces), expected, atol=1e-4)
    # Integer sums, and float64 between edges: the simulator's are the same numbers.
    assert torch.equal(simulator.logits(ids), whole[1])
    again = evaluate(simulator, TEXT, window=61, max_windows=2, reference=float_model)
    for key in ("perplexity", "reference_perplexity", "kl_to_reference"):
        assert again[key] == pytest.approx(measured[key], rel=1e-5)


@pytest.mark.parametrize("backend", ["onnx", "executorch"])
def test_a_runtimes_chunks_are_its_logits(artifact: Path, backend: str) -> None:
    model = QuantizedModel.from_pretrained(artifact, backend=backend)
    ids = model.tokenizer.encode(TEXT)[:80]
    pieces = list(model.logit_chunks(ids))
    assert len(pieces) > 2
    model.runner.reset()
    expected = torch.from_numpy(model.runner.prefill(ids))
    assert torch.equal(torch.cat(pieces)[1:], expected[:-1])
    model.close()


def test_the_reference_can_stand_behind_the_same_prefix(artifact: Path) -> None:
    """As the decoder predicts over prefix and text at once; room for the text is as much less."""
    model = FloatModel.from_pretrained(artifact.parent / "checkpoint")
    plain, room = model.logits([5, 9, 4]), model.max_window
    model.start_behind((1, 7, 8))
    with torch.no_grad():
        expected = model.decoder(torch.tensor([[1, 7, 8, 5, 9]]))[0][0, 2:]
    assert torch.equal(model.logits([5, 9, 4]), expected)
    assert model.max_window == room - 2
    model.start_behind((1,))
    assert torch.equal(model.logits([5, 9, 4]), plain)
