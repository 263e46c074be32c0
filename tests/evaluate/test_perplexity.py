"""Perplexity against direct computation, equal token counts for float and quantised, and every refusal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_artifact import TEXT, write_checkpoint

from mobileicsa.artifact.model import FloatModel, QuantizedModel
from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.evaluate import perplexity
from mobileicsa.evaluate.perplexity import evaluate, plan_windows


@pytest.fixture(scope="module")
def simulator(artifact: Path) -> QuantizedModel:
    return QuantizedModel.from_pretrained(artifact)


@pytest.fixture(scope="module")
def float_model(artifact: Path) -> FloatModel:
    return FloatModel.from_pretrained(artifact.parent / "checkpoint")


def test_perplexity_is_the_exponential_of_the_mean_loss_behind_bos(float_model: FloatModel) -> None:
    ids = float_model.tokenizer.encode(TEXT)
    losses = []
    for start in (0, 15, 30):
        window = [1, *ids[start : start + 15]]
        with torch.no_grad():
            logits = float_model.decoder(torch.tensor([window]))[0][0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:]), reduction="none"))
    result = evaluate(float_model, TEXT, window=16, max_windows=3)
    assert result["perplexity"] == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-5)
    assert (result["tokens"], result["windows"], result["bos"], result["bos_token"]) == (45, 3, True, "<s>")


def test_chunks_of_rows_do_not_change_the_result(float_model: FloatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(float_model, TEXT, window=16, max_windows=2)["perplexity"]
    monkeypatch.setattr(perplexity, "CHUNK_VALUES", 1)
    assert evaluate(float_model, TEXT, window=16, max_windows=2)["perplexity"] == pytest.approx(whole, rel=1e-6)


def test_float_and_quantized_score_the_same_tokens(float_model: FloatModel, simulator: QuantizedModel) -> None:
    assert simulator.prefixed
    measured = [evaluate(model, TEXT, window=24, max_windows=4) for model in (float_model, simulator)]
    keys = ("tokens", "windows", "stride", "bos", "text_sha256", "scored")
    first, second = ([m[key] for key in keys] for m in measured)
    assert first == second
    assert measured[0]["tokens"] == 4 * 23


def test_a_model_is_its_own_reference(simulator: QuantizedModel) -> None:
    result = evaluate(simulator, TEXT, window=24, max_windows=2, reference=simulator)
    assert result["ratio"] == 1.0
    assert result["top1_agreement"] == 1.0
    assert result["kl_to_reference"] == pytest.approx(0.0, abs=1e-7)


def test_the_reference_figures_are_those_of_the_reference(float_model: FloatModel, simulator: QuantizedModel) -> None:
    result = evaluate(simulator, TEXT, window=24, max_windows=2, reference=float_model)
    alone = evaluate(float_model, TEXT, window=24, max_windows=2)["perplexity"]
    assert result["reference_perplexity"] == pytest.approx(alone, rel=1e-6)
    assert result["ratio"] == pytest.approx(result["perplexity"] / alone)
    assert 0 < result["kl_to_reference"] < 1
    assert 0.3 < result["top1_agreement"] < 1


def test_without_bos_the_first_token_of_a_window_is_not_scored(tmp_path: Path) -> None:
    model = FloatModel.from_pretrained(write_checkpoint(tmp_path / "no_bos", bos_token_id=None))
    result = evaluate(model, TEXT, window=16, max_windows=3)
    assert (result["tokens"], result["bos"], result["bos_token"]) == (45, False, None)


@given(tokens=st.integers(1, 200), window=st.integers(2, 40), data=st.data())
def test_every_token_is_scored_exactly_once_whatever_the_stride(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.one_of(st.none(), st.integers(1, window - 1)))
    windows = plan_windows(tokens, window, stride, has_bos=True)
    scored = [token for w in windows for token in range(w.scored_from, w.end)]
    assert scored == list(range(tokens))
    assert all(w.end - w.start <= window - 1 for w in windows)


def test_a_stride_gives_context_and_lowers_nothing_else(float_model: FloatModel) -> None:
    result = evaluate(float_model, TEXT[:60], window=16, stride=5)
    assert result["tokens"] == 60
    assert result["stride"] == 5


def test_a_text_shorter_than_a_window_works_and_says_so(float_model: FloatModel) -> None:
    result = evaluate(float_model, "A fox.", window=32)
    assert result["tokens"] == 6
    assert "only 6 tokens" in result["note"]


def test_an_empty_text_is_refused(float_model: FloatModel) -> None:
    with pytest.raises(InputError, match="no token"):
        evaluate(float_model, "", window=16)


def test_a_window_larger_than_the_context_is_refused_with_the_limit(simulator: QuantizedModel) -> None:
    with pytest.raises(InputError, match=r"--window 500.*at most") as caught:
        evaluate(simulator, TEXT, window=500)
    limit = simulator.max_window + 1
    assert f"--window {limit} or less" in str(caught.value)
    assert evaluate(simulator, TEXT, window=limit, max_windows=1)["tokens"] == limit - 1


@pytest.mark.parametrize("wrong", [{"window": 1}, {"max_windows": 0}, {"stride": 0}, {"window": 8, "stride": 8}])
def test_impossible_sizes_are_usage_errors(float_model: FloatModel, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        evaluate(float_model, TEXT, **wrong)


def test_nan_logits_are_an_error_not_a_number(tmp_path: Path) -> None:
    model = FloatModel.from_pretrained(write_checkpoint(tmp_path / "broken"))
    model.decoder.head.norm.weight.data[0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        evaluate(model, TEXT, window=16, max_windows=1)


def test_a_reference_with_another_tokenizer_is_refused(tmp_path: Path, float_model: FloatModel) -> None:
    other = write_checkpoint(tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text().replace('"merges": []', '"merges": [["T", "h"]]')
    vocab_end = '"<s>": 1,'
    assert vocab_end in tokenizer
    (other / "tokenizer.json").write_text(tokenizer.replace(vocab_end, '"<s>": 1, "Th": 260,'))
    with pytest.raises(InputError, match="other tokens"):
        evaluate(float_model, TEXT, window=16, reference=FloatModel.from_pretrained(other))
