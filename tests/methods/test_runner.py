"""`methods run`: result form, kept steps, refusals, overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from schema import read_result
from toy_method import Toy, ToyConfig

from mobileicsa.api import run_method
from mobileicsa.core.errors import InputError, MobileICSAError, UsageError
from mobileicsa.methods.overrides import configure

SIZES = {"small": ToyConfig()}


def test_a_run_writes_result_figure_and_artifact(toy: Toy, tmp_path: Path) -> None:
    run_method("toy", "small", tmp_path / "out", overrides=["seed=4"])
    document = read_result(tmp_path / "out")
    assert document["metrics"]["score"]["per_seed"] == pytest.approx([0.54, 0.55, 0.56])
    assert document["verdict"]["holds"]
    assert document["artifacts"] == {"model": "model", "figure": "figure.svg", "trials": "trials.json"}
    assert document["environment"]["config"] == {"seed": 4, "seeds": 3, "gain": 0.5, "rates": [0.1]}
    assert (tmp_path / "out" / "figure.svg").read_text().startswith("<svg")
    assert [trial["seed"] for trial in json.loads((tmp_path / "out" / "trials.json").read_text())["zero"]] == [4, 5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_claim_that_fails_is_said(toy: Toy, tmp_path: Path) -> None:
    run_method("toy", "small", tmp_path / "out", overrides=["gain=-1"])
    verdict = read_result(tmp_path / "out")["verdict"]
    assert not verdict["holds"]
    assert "-1.0000 against zero" in verdict["why"]


def test_an_interrupted_run_goes_on_at_what_is_finished(toy: Toy, tmp_path: Path) -> None:
    toy.fail_at = ("zero", 1)
    with pytest.raises(KeyboardInterrupt):
        run_method("toy", "small", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = list(toy.ran)
    run_method("toy", "small", tmp_path / "out")
    assert before[-1] == ("toy", 1)
    assert toy.ran[len(before) :] == [("zero", 1), ("prepare", 2), ("toy", 2), ("zero", 2)]


def test_other_settings_do_not_take_kept_steps(toy: Toy, tmp_path: Path) -> None:
    toy.fail_at = ("zero", 0)
    with pytest.raises(KeyboardInterrupt):
        run_method("toy", "small", tmp_path / "out")
    toy.ran.clear()
    run_method("toy", "small", tmp_path / "out", overrides=["gain=2"])
    assert toy.ran[:2] == [("prepare", 0), ("toy", 0)]


def test_a_filled_output_is_refused_before_anything_runs(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run_method("toy", "smoke", tmp_path)
    assert toy.ran == []
    run_method("toy", "smoke", tmp_path, overwrite=True)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("gian=1", UsageError, "did you mean gain"),
        ("gain", UsageError, "must be key=value"),
        ("gain=high", InputError, "valid number"),
        ("seed=1.5", InputError, "valid integer"),
        ("seed=-1", InputError, "0 to"),
        ("seeds=0", InputError, "1 to"),
        ("seeds=99", InputError, "1 to"),
        ("rates=[1, x]", InputError, "valid number"),
        ("rates=[", InputError, "not a list"),
    ],
)
def test_a_wrong_override_names_what_is_wrong(override: str, error: type[MobileICSAError], message: str) -> None:
    with pytest.raises(error) as raised:
        configure(SIZES, "small", [override])
    assert message in str(raised.value)
    assert override.split("=")[0] in str(raised.value)


def test_overrides_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEICSA_DATA", "/from/variable")
    config = configure(SIZES, "small", ["gain=1e-3", "rates=[1, 2]", "seed=7"])
    assert config == ToyConfig(gain=1e-3, rates=(1.0, 2.0), seed=7, data=Path("/from/variable"))
    assert configure(SIZES, "small", ["data=1"]).data == Path("1")


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean small"):
        configure(SIZES, "smal", [])
