"""Rows made alone go into the committed table beside the others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import steps, tables
from benchmarks.accuracy import run, zero_shot
from benchmarks.accuracy.other_rows import joined, machine, refuse_other, refuse_other_float
from benchmarks.accuracy.run import ROWS, name_of
from benchmarks.steps import Steps, made_on, read_result

NAMES = ["a", "b", "c"]
FLOAT = {"wikitext2": {"perplexity": 37.5, "tokens": 100}}
HERE = {"cores": 1, "cpu": "one"}
COMMITTED = {
    "accuracy-smollm2-135m": run,
    "accuracy-small-llama": run,
    zero_shot.RESULT: zero_shot,
}


def committed(stem: str) -> dict[str, Any]:
    found = read_result(stem)
    assert found is not None
    return found


def test_a_row_takes_the_place_of_the_earlier_one_and_the_others_stay() -> None:
    earlier = [{"name": "c", "value": 1}, {"name": "a", "value": 1}, {"name": "gone", "value": 1}]
    found = joined([{"name": "b", "value": 2}, {"name": "a", "value": 2}], earlier, NAMES, lambda row: str(row["name"]))
    assert [(row["name"], row["value"]) for row in found] == [("a", 2), ("b", 2), ("c", 1)]


@pytest.mark.parametrize("stem", COMMITTED)
def test_committed_rows_stay_whole_and_in_order(stem: str) -> None:
    rows = committed(stem)["rows"]
    assert joined([], rows, [row.name for row in ROWS], name_of) == rows
    assert len({name_of(row) for row in rows}) == len(rows) > 1


@pytest.mark.parametrize("stem", COMMITTED)
def test_a_committed_table_refuses_rows_beside_another_float_model(stem: str) -> None:
    found, of = committed(stem), COMMITTED[stem]
    refuse_other_float(of._floats(found), of._floats(found), of.FLOAT_TOLERANCE)
    other = {name: value * (1 + 2 * of.FLOAT_TOLERANCE) for name, value in of._floats(found).items()}
    with pytest.raises(SystemExit, match=r"float's .* is not the committed result's"):
        refuse_other_float(other, of._floats(found), of.FLOAT_TOLERANCE)


def test_one_question_that_another_cpu_answers_otherwise_is_no_other_model() -> None:
    floats = zero_shot._floats(committed(zero_shot.RESULT))
    one = {task: right + 1 / 1172 for task, right in floats.items()}
    refuse_other_float(one, floats, zero_shot.FLOAT_TOLERANCE)


def test_a_text_that_the_table_has_not_is_refused() -> None:
    with pytest.raises(SystemExit, match="tokens on wikitext2 100"):
        refuse_other_float(run._floats({"float": FLOAT}), {}, run.FLOAT_TOLERANCE)


def test_another_window_is_refused() -> None:
    refuse_other({"model": "m", "window": 256}, {"model": "m", "window": 256}, run.SAME)
    with pytest.raises(SystemExit, match="--only: window 256 is not"):
        refuse_other({"model": "m", "window": 256}, {"model": "m", "window": 128}, run.SAME)


def test_a_row_says_where_it_was_made_if_that_was_elsewhere() -> None:
    assert machine(HERE, HERE) == {}
    assert machine(HERE, {"cores": 2, "cpu": "one"}) == {"machine": "one core"}
    assert machine({"cores": 2, "cpu": "other"}, HERE) == {"machine": "2 cores, other"}


def test_every_row_is_found_again_by_its_facts() -> None:
    assert [name_of(row.facts()) for row in ROWS] == [row.name for row in ROWS]


def test_without_a_committed_result_there_is_none_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RESULTS", tmp_path)
    assert read_result("accuracy-smollm2-135m") is None


def test_a_kept_answer_says_where_it_was_made(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('{}')"]
    first = Steps(tmp_path).run("one", command)
    assert first["made_on"] == made_on()
    path = tmp_path / "answers" / "one.json"
    path.write_text(json.dumps(first | {"made_on": HERE}))
    assert Steps(tmp_path).run("one", command)["made_on"] == HERE


def test_an_answer_that_does_not_say_so_is_refused_by_its_name(tmp_path: Path) -> None:
    kept = Steps(tmp_path)
    (tmp_path / "answers" / "one.json").write_text('{"answer": {}}')
    with pytest.raises(SystemExit, match=r"one\.json: of an older version"):
        kept.run("one", [sys.executable, "-c", "print('{}')"])


def test_what_must_be_known_of_a_row_stands_below_its_table() -> None:
    found = committed("accuracy-smollm2-135m")
    row = {**found["rows"][0], "note": "made by night"}
    plain = tables.recipes({**found, "rows": [{key: row[key] for key in row if key != "note"}]})
    assert not any(line.startswith("- ") for line in plain)
    assert tables.recipes({**found, "rows": [row]}) == [*plain, "", "- w8a8 minmax: made by night."]


def test_what_must_be_known_of_a_table_stands_above_it() -> None:
    result = {"model": "tiny", "rows": []}
    assert tables.ablation(result)[0].endswith("tables above.")
    assert tables.ablation(result | {"note": "by night"})[0].endswith("tables above; by night.")
