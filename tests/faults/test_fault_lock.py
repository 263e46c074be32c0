"""Torture list, case 43: two runs on the same output."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from crash import in_child

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.io.lock import OutputLock


def hold_lock(output: Path, held: int, release: int) -> None:
    with OutputLock(output):
        os.write(held, b"x")
        os.read(release, 1)


def held_by_a_child(output: Path) -> tuple[int, int]:
    """Another process holds the lock: its pid, and where a byte makes it let go."""
    held, tell_held = os.pipe()
    release, tell_release = os.pipe()
    child = os.fork()
    if child == 0:
        hold_lock(output, tell_held, release)
        os._exit(0)
    os.read(held, 1)
    return child, tell_release


def test_fault_43_a_second_run_on_the_same_output_is_refused_at_once_naming_the_holder(tmp_path: Path) -> None:
    child, tell_release = held_by_a_child(tmp_path / "out")
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match=rf"pid {child} on {socket.gethostname()}, since") as caught:
        OutputLock(tmp_path / "out").__enter__()
    assert time.monotonic() - start < 1.0
    assert caught.value.exit_code == 4
    with OutputLock(tmp_path / "other"):
        pass
    os.write(tell_release, b"x")
    assert os.waitpid(child, 0)[1] == 0
    with OutputLock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_fault_43_the_lock_of_a_dead_run_is_taken_over_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def die_holding() -> None:
        OutputLock(tmp_path / "out").__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die_holding) == -signal.SIGKILL
    assert (tmp_path / "out.lock").exists()
    with caplog.at_level(logging.WARNING), OutputLock(tmp_path / "out"):
        assert "left behind by a run that died (pid" in caplog.text


def test_fault_43_a_lock_of_another_machine_on_a_network_disk_is_respected(tmp_path: Path) -> None:
    note = '{"pid": 1, "host": "elsewhere", "started": "2026-01-01T00:00:00+00:00"}'
    (tmp_path / "out.lock").write_text(note)
    with pytest.raises(EnvironmentFault, match="pid 1 on elsewhere") as caught:
        OutputLock(tmp_path / "out").__enter__()
    assert "rm '" in str(caught.value)
    assert (tmp_path / "out.lock").read_text() == note


def test_fault_43_many_runs_never_hold_the_lock_together(tmp_path: Path) -> None:
    def compete() -> None:
        for _ in range(40):
            try:
                with OutputLock(tmp_path / "out"):
                    os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
                    os.unlink(tmp_path / "alone")
            except EnvironmentFault:
                time.sleep(0.001)

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                compete()
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


def test_fault_43_a_run_that_waits_goes_on_when_the_other_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child, tell_release = held_by_a_child(tmp_path / "out")
    order: list[str] = []

    def wait() -> None:
        with OutputLock(tmp_path / "out", waits=True):
            order.append("in")

    waiter = threading.Thread(target=wait)
    with caplog.at_level(logging.WARNING):
        waiter.start()
        while "waiting for another run" not in caplog.text:
            time.sleep(0.01)
        order.append("released")
        os.write(tell_release, b"x")
        waiter.join(10)
    assert order == ["released", "in"]
    assert f"pid {child}" in caplog.text
    assert os.waitpid(child, 0)[1] == 0
    assert list(tmp_path.iterdir()) == []
