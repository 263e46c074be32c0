"""Torture list, case 42: Ctrl-C and SIGTERM; and case 47 and 49 for the whole command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import quick_backend
import torch
from commands import Fork

from mobileicsa.cli.main import execute

Start = Callable[..., Fork]

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.fixture
def slow_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A back end that never comes to an end by itself."""
    monkeypatch.setattr(quick_backend, "PAUSE_S", 60.0)
    with quick_backend.quick_backend():
        yield


def wait_for_writer(folder: Path, child: Fork) -> Path:
    """The work space, once the back end has begun to write in it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for found in folder.glob("out.partial-*/artifact/quick/model.quick"):
            return found.parents[2]
        time.sleep(0.01)
    raise AssertionError(child.wait())


@pytest.mark.usefixtures("slow_writer")
@pytest.mark.parametrize(("number", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_fault_42_an_interrupted_run_keeps_and_names_its_finished_steps(
    fork: Start, quantize: list[str], tmp_path: Path, number: int, code: int, word: str
) -> None:
    child = fork(*quantize, "--output", tmp_path / "out")
    staging = wait_for_writer(tmp_path, child)
    os.kill(child.pid, number)
    result = child.wait()
    assert (result.code, result.out) == (code, "")
    assert f"error: {word}" in result.err
    assert f"finished steps are kept in {staging}: the same command with --resume goes on" in result.err
    assert "Traceback" not in result.err
    assert (staging / "stages" / "layer-001.json").is_file()
    assert list(tmp_path.iterdir()) == [staging]


@pytest.mark.usefixtures("slow_writer")
@pytest.mark.parametrize(("number", "code", "word"), SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_fault_42_an_interruption_is_one_json_document_too(
    fork: Start, quantize: list[str], tmp_path: Path, number: int, code: int, word: str
) -> None:
    child = fork(*quantize, "--output", tmp_path / "out", "--json")
    staging = wait_for_writer(tmp_path, child)
    os.kill(child.pid, number)
    result = child.wait()
    assert result.code == code
    assert result.json["error"]["exit_code"] == code
    assert result.json["error"]["message"] == word
    assert str(staging) in result.json["error"]["hint"]


@pytest.mark.parametrize(
    ("flags", "goes_on", "told"),
    [
        (["--resume"], True, False),
        (["--resume", "--overwrite"], True, False),
        ([], True, True),  # nothing is lost where nobody said that it may be
        (["--overwrite"], False, False),
    ],
    ids=lambda value: " ".join(value) or "plain" if isinstance(value, list) else None,
)
def test_fault_42_what_was_interrupted_goes_on(
    fork: Start,
    quantize: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    goes_on: bool,
    told: bool,
) -> None:
    given = [*quantize, "--output", tmp_path / "out"]
    with quick_backend.quick_backend():
        with monkeypatch.context() as patch:
            patch.setattr(quick_backend, "PAUSE_S", 60.0)
            child = fork(*given)
            wait_for_writer(tmp_path, child)
            os.kill(child.pid, signal.SIGINT)
            assert child.wait().code == 130
        result = fork(*given, *flags).wait()
    assert result.code == 0
    assert ("layer 1/2" not in result.err) == goes_on
    assert ("--overwrite starts again" in result.err) == told
    assert "write quick for quick" in result.err


def manifest(folder: Path) -> bytes:
    return (folder / "manifest.json").read_bytes()


@pytest.fixture
def expected(quantize: list[str], tmp_path: Path, quick: None) -> bytes:
    assert execute([*quantize, "--output", str(tmp_path / "expected")]) == 0
    return manifest(tmp_path / "expected")


def at_1970(zone: str) -> None:
    os.environ["TZ"] = zone
    time.tzset()
    time.time = lambda: 0.0  # type: ignore[method-assign]


def test_fault_47_clock_and_time_zone_change_no_hashed_byte(
    fork: Start, quantize: list[str], tmp_path: Path, expected: bytes
) -> None:
    child = fork(*quantize, "--output", tmp_path / "out", before=lambda: at_1970("Pacific/Kiritimati"))
    assert child.wait().code == 0
    assert manifest(tmp_path / "out") == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_fault_49_the_number_of_threads_changes_no_hashed_byte(
    fork: Start, quantize: list[str], tmp_path: Path, expected: bytes, threads: int
) -> None:
    child = fork(*quantize, "--output", tmp_path / "out", before=lambda: torch.set_num_threads(threads))
    assert child.wait().code == 0
    assert manifest(tmp_path / "out") == expected
