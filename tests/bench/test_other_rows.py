"""Rows made alone go into the committed table beside the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import steps
from benchmarks.accuracy import run, zero_shot
from benchmarks.accuracy.other_rows import joined, machine, refuse_other
from benchmarks.accuracy.run import ROWS, name_of
from benchmarks.steps import read_result

NAMES = ["a", "b", "c"]
FLOAT = {"wikitext2": {"perplexity": 37.5, "tokens": 100}}
HERE = {"cores": 1, "cpu": "one"}


def result(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "window": 256, "float": FLOAT} | changes


def refuse(ours: dict[str, Any], earlier: dict[str, Any]) -> None:
    refuse_other(ours, earlier, ("model", "window"), run._floats)


def test_a_row_takes_the_place_of_the_earlier_one_and_the_others_stay() -> None:
    earlier = [{"name": "c", "value": 1}, {"name": "a", "value": 1}, {"name": "gone", "value": 1}]
    found = joined([{"name": "b", "value": 2}, {"name": "a", "value": 2}], earlier, NAMES, lambda row: str(row["name"]))
    assert [(row["name"], row["value"]) for row in found] == [("a", 2), ("b", 2), ("c", 1)]


def test_the_same_table_is_taken_with_the_last_digits_of_another_cpu() -> None:
    refuse(result(), result(float={"wikitext2": {"perplexity": 37.51, "tokens": 100}}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window": 128}, "window 256"),
        ({"model": "n"}, "model m"),
        ({"float": {"wikitext2": {"perplexity": 38.5, "tokens": 100}}}, "perplexity on wikitext2 37.5"),
        ({"float": {"wikitext2": {"perplexity": 37.5, "tokens": 90}}}, "tokens on wikitext2 100"),
        ({"float": {}}, "tokens on wikitext2 100"),
    ],
)
def test_rows_of_another_table_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SystemExit, match=named):
        refuse(result(), result(**changes))


def test_a_row_says_where_it_was_made_if_that_was_elsewhere() -> None:
    assert machine(HERE, HERE) == {}
    assert machine(HERE, {"cores": 2, "cpu": "one"}) == {"machine": "one core"}
    assert machine({"cores": 2, "cpu": "other"}, HERE) == {"machine": "2 cores, other"}


def test_every_row_is_found_again_by_its_facts() -> None:
    assert [name_of(row.facts()) for row in ROWS] == [row.name for row in ROWS]


@pytest.mark.parametrize(
    ("stem", "same", "floats"),
    [
        ("accuracy-smollm2-135m", ("model", "window"), run._floats),
        (zero_shot.RESULT, ("model", "limit", "seed", "lm_eval"), zero_shot._floats),
    ],
)
def test_the_committed_tables_take_rows(stem: str, same: tuple[str, ...], floats: Any) -> None:
    committed = read_result(stem)
    assert committed is not None
    refuse_other(committed, json.loads(json.dumps(committed)), same, floats)
    names = [row.name for row in ROWS]
    assert joined([], committed["rows"], names, name_of) == committed["rows"]


def test_without_a_committed_result_there_is_none_to_keep(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RESULTS", tmp_path)
    assert read_result("accuracy-smollm2-135m") is None
