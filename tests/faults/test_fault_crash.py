"""Torture list, cases 41 and 47: a run killed anywhere goes on to the same bytes, whatever the clock says."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from crash import STAGES, in_child, old_artifact, run

from mobileicsa.io.hashing import sha256_tree
from mobileicsa.io.stages import StageStore
from mobileicsa.io.staging import Staging

KILL_POINTS = [f"{stage}:{moment}" for stage in STAGES for moment in ("kill", "before", "after")]


COMMIT_POINTS = ["commit:before", "commit:kill", "commit:after"]


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """The digest of what an uninterrupted run leaves."""
    output = tmp_path / "reference"
    assert in_child(lambda: run(output)) == 0
    return sha256_tree(output)


@pytest.mark.parametrize("point", KILL_POINTS + COMMIT_POINTS)
def test_fault_41_a_run_killed_at_a_stage_goes_on_to_the_same_bytes(tmp_path: Path, reference: str, point: str) -> None:
    output = tmp_path / "out"
    # `commit:kill` lies between moving the old artifact away and the new one in.
    old = old_artifact(output) if point == "commit:kill" else None
    assert in_child(lambda: run(output), fault=point) == -signal.SIGKILL
    if point == "commit:after":
        assert sha256_tree(output) == reference
    else:
        assert not output.exists()
    ran = run(output)
    assert sha256_tree(output) == reference
    assert sha256_tree(output) != old
    stage, _, moment = point.rpartition(":")
    if stage in STAGES:
        finished = STAGES.index(stage) + (moment == "after")
        assert ran == list(STAGES[finished:])
    assert sorted(tmp_path.iterdir()) == [output, tmp_path / "reference"]


def test_fault_41_a_run_killed_in_commit_gives_the_old_artifact_back_to_any_later_run(tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = old_artifact(output)
    assert in_child(lambda: run(output), fault="commit:kill") == -signal.SIGKILL
    with Staging(output, "another1"):
        assert sha256_tree(output) == before


def test_fault_41_a_run_killed_at_any_moment_never_looks_complete_and_goes_on(tmp_path: Path, reference: str) -> None:
    output = tmp_path / "out"
    start = time.monotonic()
    assert in_child(lambda: run(tmp_path / "timed")) == 0
    longest_s = time.monotonic() - start
    moments = random.Random(0)
    killed = 0
    for _ in range(25):
        kill_after_s = moments.uniform(0, longest_s)
        killed += in_child(lambda: run(output), kill_after_s=kill_after_s) == -signal.SIGKILL
        if output.exists():
            # Too late to stop it: the next ones, sooner, stop a run from the beginning again.
            assert sha256_tree(output) == reference
            shutil.rmtree(output)
            longest_s = kill_after_s
    assert killed > 0
    run(output)
    assert sha256_tree(output) == reference


def test_fault_41_half_written_files_are_no_part_of_the_artifact(tmp_path: Path, reference: str) -> None:
    """safetensors writes under a random name first, which no later run writes again."""
    output = tmp_path / "out"
    with Staging(output, "0123abcd") as staging:  # neither finished nor failed
        for name in (".tmpA1b2C3", "weights.safetensors.tmp", "export/.tmpZ9y8X7"):
            staging.path(name).write_bytes(b"half")
    run(output)
    assert sha256_tree(output) == reference


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "mark cut", "other inputs", "other stage"])
def test_fault_41_a_stage_with_any_damage_does_not_count_as_done(tmp_path: Path, damage: str) -> None:
    store = StageStore(tmp_path)
    store.save("learn", "1", {"x": torch.ones(4)}, {"step": 3})
    assert store.done("learn", "1")
    tensors, mark = tmp_path / "learn.safetensors", tmp_path / "learn.json"
    data = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(data[:-1])
    elif damage == "bit":
        tensors.write_bytes(data[:-1] + b"\x01")
    elif damage == "gone":
        tensors.unlink()
    elif damage == "mark cut":
        mark.write_bytes(mark.read_bytes()[:-10])
    elif damage == "other stage":
        tensors.rename(tmp_path / "load.safetensors")
        mark.rename(tmp_path / "load.json")
    stage = "load" if damage == "other stage" else "learn"
    assert not store.done(stage, "2" if damage == "other inputs" else "1")


@pytest.mark.parametrize("when", [0, 1, 4_000_000_000])
def test_fault_47_file_times_do_not_decide_what_is_done(tmp_path: Path, when: int) -> None:
    store = StageStore(tmp_path)
    store.save("learn", "1", {"x": torch.ones(4)}, {})
    for path in tmp_path.iterdir():
        os.utime(path, (when, when))
    assert store.done("learn", "1")
    assert not store.done("learn", "2")


def test_fault_47_a_clock_at_1970_changes_no_byte(
    tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    run(tmp_path / "out")
    monkeypatch.undo()
    time.tzset()
    assert sha256_tree(tmp_path / "out") == reference
