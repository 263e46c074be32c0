"""Standard errors of zero-shot accuracy and of paired differences; the summary, table and figure made of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import steps, tables
from benchmarks.accuracy.paired import Estimate, difference, estimate, over_tasks
from benchmarks.accuracy.questions import TASKS
from benchmarks.accuracy.zero_shot import _chosen, summary
from benchmarks.accuracy.zero_shot_figure import draw
from benchmarks.steps import Steps

FLOAT, OURS = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
bits = st.sampled_from([0.0, 1.0])


def test_an_accuracy_has_the_error_of_a_mean() -> None:
    # Three of four right: variance 4 * 0.75 * 0.25 / 3, over four questions.
    assert estimate([1.0, 0.0, 1.0, 1.0]) == Estimate(0.75, 0.25)


def test_the_error_is_the_one_that_lm_eval_states() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="needs the extra mobileicsa[eval]")
    scores = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert estimate(scores).stderr == pytest.approx(metrics.mean_stderr(scores), rel=1e-12)


def test_one_question_has_no_error() -> None:
    with pytest.raises(ValueError, match="1 scores"):
        estimate([1.0])


def test_equal_answers_differ_by_nothing_without_error() -> None:
    assert difference(FLOAT, FLOAT) == Estimate(0.0, 0.0)


@given(st.lists(st.tuples(bits, bits), min_size=2, max_size=30))
def test_a_difference_counts_only_questions_answered_differently(pairs: list[tuple[float, float]]) -> None:
    n = len(pairs)
    won, lost = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    found = difference([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    variance = (won + lost - (won - lost) ** 2 / n) / (n - 1)
    assert found.mean == pytest.approx((won - lost) / n, abs=1e-12)
    assert found.stderr == pytest.approx(math.sqrt(max(variance, 0.0) / n), abs=1e-9)


def test_pairing_is_tighter_than_two_separate_errors_where_models_agree() -> None:
    assert difference(OURS, FLOAT) == Estimate(-0.25, 0.25)
    assert difference(OURS, FLOAT).stderr < math.hypot(estimate(OURS).stderr, estimate(FLOAT).stderr)


def test_lists_of_other_questions_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="shorter"):
        difference(OURS, FLOAT[:3])


def test_errors_of_tasks_add_as_variances() -> None:
    assert over_tasks([Estimate(0.2, 0.03), Estimate(0.6, 0.04)]) == Estimate(0.4, 0.025)


def answered(scores: list[float]) -> dict[str, Any]:
    """An answer of questions.py in which every task was answered alike; acc_norm is right where acc is wrong."""
    found: dict[str, Any] = {}
    for task in TASKS:
        found[task] = {"rows": list(range(len(scores))), "questions": task, "acc": scores}
        if task not in ("lambada_openai", "winogrande"):
            found[task]["acc_norm"] = [1.0 - score for score in scores]
    found["lambada_openai"]["log_likelihood"] = [-math.log(4.0), -math.log(16.0)] * (len(scores) // 2)
    return found


def result() -> dict[str, Any]:
    """Of one recipe, in the form of the committed file."""
    row = {"scheme": "w4a8", "recipe": "learned", "effort": "best", **summary(answered(OURS), answered(FLOAT), "row")}
    reference = summary(answered(FLOAT), None, "float")
    return {"model": "tiny", "limit": 4, "lm_eval": "0", "float": reference, "rows": [row]}


def test_a_summary_has_each_metric_its_error_and_its_difference() -> None:
    found = summary(answered(OURS), answered(FLOAT), "row")
    piqa = found["tasks"]["piqa"]
    assert piqa["n"] == 4
    assert piqa["acc"] == {"value": 0.25, "stderr": 0.25, "difference": -0.25, "difference_stderr": 0.25}
    assert piqa["acc_norm"] == {"value": 0.75, "stderr": 0.25, "difference": 0.25, "difference_stderr": 0.25}
    assert found["tasks"]["lambada_openai"]["perplexity"] == pytest.approx(8.0)
    assert "acc_norm" not in found["tasks"]["winogrande"]


def test_the_mean_takes_acc_norm_where_there_is_one() -> None:
    mean = summary(answered(OURS), answered(FLOAT), "row")["mean"]
    assert mean["value"] == pytest.approx((4 * 0.75 + 2 * 0.25) / 6)
    assert mean["difference"] == pytest.approx((4 * 0.25 - 2 * 0.25) / 6)
    assert mean["difference_stderr"] == pytest.approx(0.25 / math.sqrt(6))


def test_answers_to_other_questions_are_refused() -> None:
    other = answered(OURS)
    other["piqa"]["questions"] = "older data"
    with pytest.raises(SystemExit, match="row, piqa: other questions"):
        summary(other, answered(FLOAT), "row")


def test_a_missing_artifact_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"w8a8-minmax: no artifact .*run benchmarks.accuracy.run first"):
        _chosen(Steps(tmp_path), ["w8a8-minmax"])


def test_the_table_has_a_line_for_float_and_each_recipe() -> None:
    *_, reference, row = tables.zero_shot(result())
    assert reference == "| float32 |  | " + " | ".join(["50.0 ± 28.9"] * 6) + " | 50.0 ± 11.8 |  |"
    assert row.startswith("| w4a8 | learned, effort best | 25.0 ± 25.0 | 75.0 ± 25.0 |")
    assert row.endswith("| 58.3 ± 10.2 | +8.3 ± 10.2 |")


def test_a_table_without_a_result_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RESULTS", tmp_path)
    text = "before\n<!-- table: zero_shot -->\nold\n<!-- end -->\nafter\n"
    assert tables.fill(text) == text.replace("old\n", "")


def test_the_figure_is_the_same_text_each_time() -> None:
    assert draw(result()) == draw(result())
    assert "learned best" in draw(result())
