"""Texts side by side: both whole, the first difference where it is, and an interrupted run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_artifact import Silent, write_checkpoint

from mobileicsa.artifact.golden import common_length
from mobileicsa.artifact.model import FloatModel, QuantizedModel
from mobileicsa.core.errors import InputError
from mobileicsa.evaluate.side_by_side import BUNDLED, compare, token_span

PROMPTS = ["The fox", "a dog and a fox", "def add(a, b):"]


@pytest.fixture(scope="module")
def simulator(artifact: Path) -> QuantizedModel:
    return QuantizedModel.from_pretrained(artifact)


@pytest.fixture(scope="module")
def float_model(artifact: Path) -> FloatModel:
    return FloatModel.from_pretrained(artifact.parent / "checkpoint")


def test_both_texts_are_those_that_the_models_write_alone(float_model: FloatModel, simulator: QuantizedModel) -> None:
    result = compare(simulator, float_model, PROMPTS, tokens=12, progress=Silent())
    assert (result["finished"], result["warning"], result["backend"]) == (True, None, "simulator")
    for prompt, pair in zip(PROMPTS, result["pairs"], strict=True):
        first, second = (m.generate(prompt, max_new_tokens=12) for m in (float_model, simulator))
        assert (pair["float"]["text"], pair["float"]["token_ids"]) == (first.text, first.token_ids)
        assert (pair["artifact"]["text"], pair["artifact"]["token_ids"]) == (second.text, second.token_ids)
        equal = pair["equal_tokens"]
        assert first.token_ids[:equal] == second.token_ids[:equal]
        assert first.token_ids[equal : equal + 1] != second.token_ids[equal : equal + 1]
    total = sum(pair["tokens"] for pair in result["pairs"])
    assert result["token_agreement"] == sum(pair["equal_tokens"] for pair in result["pairs"]) / total


def test_a_model_beside_itself_is_identical(artifact: Path, float_model: FloatModel) -> None:
    one = QuantizedModel.from_pretrained(artifact)
    one.generate = float_model.generate  # type: ignore[method-assign]
    result = compare(one, float_model, PROMPTS, tokens=6)
    assert (result["identical"], result["token_agreement"]) == (3, 1.0)
    assert all("differs" not in pair[side] for pair in result["pairs"] for side in ("float", "artifact"))


def test_the_differing_token_is_found_in_its_text(simulator: QuantizedModel) -> None:
    tokenizer = simulator.tokenizer
    ids = tokenizer.encode("a fox")
    assert token_span(tokenizer, ids, 2) == (2, 3)
    assert token_span(tokenizer, ids, 0) == (0, 1)
    assert token_span(tokenizer, ids, len(ids)) == (5, 5)
    # Two bytes, two tokens: a difference within a character marks the whole of it.
    ids = tokenizer.encode("caé!")
    assert len(ids) == 5
    assert [token_span(tokenizer, ids, index) for index in (1, 2, 3, 4)] == [(1, 2), (2, 3), (2, 3), (3, 4)]


@pytest.mark.parametrize(
    ("first", "second", "common"), [([], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 5, 3], 1), ([1], [1, 2], 1)]
)
def test_tokens_count_up_to_the_first_that_differs(first: list[int], second: list[int], common: int) -> None:
    assert common_length(first, second) == common


def test_an_interrupted_comparison_keeps_its_pairs_and_goes_on(
    float_model: FloatModel, simulator: QuantizedModel
) -> None:
    seen: list[dict[str, Any]] = []

    def stop_after_two(found: dict[str, Any]) -> None:
        seen.append({**found, "pairs": list(found["pairs"])})
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(simulator, float_model, PROMPTS, tokens=5, keep=stop_after_two)
    before = seen[-1]
    assert (before["finished"], len(before["pairs"])) == (False, 2)
    titles: list[str] = []

    class Told(Silent):
        def step(self, title: str, total: int) -> Any:
            titles.append(title)
            return super().step(title, total)

    whole = compare(simulator, float_model, PROMPTS, tokens=5)
    assert compare(simulator, float_model, PROMPTS, tokens=5, before=before, progress=Told()) == whole
    assert titles == ["prompt 3/3"]
    # Other terms, other prompts, or a finished one: anew.
    for tokens, prompts, other in ((4, PROMPTS, before), (5, PROMPTS[::-1], before), (5, PROMPTS, whole)):
        titles.clear()
        compare(simulator, float_model, prompts, tokens=tokens, before=other, progress=Told())
        assert len(titles) == 3


def test_another_model_is_told_and_another_tokenizer_refused(simulator: QuantizedModel, tmp_path: Path) -> None:
    other = FloatModel.from_pretrained(write_checkpoint(tmp_path / "other", rms_norm_eps=1e-4))
    assert compare(simulator, other, ["a"], tokens=2)["warning"].startswith("other is not the checkpoint")
    folder = write_checkpoint(tmp_path / "odd")
    text = (folder / "tokenizer.json").read_text().replace('"merges": []', '"merges": [["T", "h"]]')
    (folder / "tokenizer.json").write_text(text.replace('"<s>": 1,', '"<s>": 1, "Th": 260,'))
    with pytest.raises(InputError, match="splits prompt 1 into other tokens"):
        compare(simulator, FloatModel.from_pretrained(folder), ["The"], tokens=2)


def test_what_does_not_fit_the_context_is_refused_before_anything_is_written(
    float_model: FloatModel, simulator: QuantizedModel
) -> None:
    kept: list[Any] = []
    with pytest.raises(InputError, match=r"prompt 2: its 60 tokens and 50 new ones do not fit") as caught:
        compare(simulator, float_model, ["a", "b" * 60], tokens=50, keep=kept.append)
    assert "--tokens" in str(caught.value)
    assert kept == []


def test_the_bundled_prompts_are_twenty() -> None:
    assert len(set(BUNDLED)) == 20
    assert all(prompt.strip() for prompt in BUNDLED)
