"""`mobileicsa methods run` as a command: exit codes, one JSON document, a table with the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from schema import KEYS
from toy_method import Toy

from mobileicsa.cli.main import execute


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    code = execute([str(argument) for argument in arguments])
    return code, *capfd.readouterr()


def test_json_is_the_result_and_nothing_else(toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, "methods", "run", "toy", "--size", "smoke", "--output", tmp_path / "out", "--json")
    assert code == 0
    document = json.loads(out)
    assert set(document) == {*KEYS, "output"}
    assert "toy, seed 0" in err
    assert not document["verdict"]["holds"]


def test_a_person_sees_numbers_and_verdict(toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capfd, "methods", "run", "toy", "--size", "small", "--output", tmp_path / "out", "seed=2")
    assert code == 0
    for words in ("0.530 ± 0.025", "toy scores above zero", "yes", "2, 3, 4"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ty", "--size", "smoke"], 2, "did you mean toy?"),
        (["toy", "--size", "smal"], 2, "did you mean small?"),
        (["toy", "--size", "small", "gian=1"], 2, "did you mean gain?"),
        (["toy", "--size", "small", "gain=x"], 3, "gain=x"),
    ],
)
def test_a_mistake_has_its_exit_code_and_a_hint(
    toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    found, _, err = call(capfd, "methods", "run", *arguments, "--output", tmp_path / "out")
    assert (found, toy.ran) == (code, [])
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_says_where_it_goes_on(toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toy.fail_at = ("zero", 1)
    arguments = ["methods", "run", "toy", "--size", "small", "--output", tmp_path / "out"]
    code, _, err = call(capfd, *arguments)
    assert code == 130
    assert "finished steps are kept" in err
    assert call(capfd, *arguments)[0] == 0
