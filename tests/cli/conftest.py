"""Fixtures of the command line's tests: run a command in this process or a fork of it, on the tiny artifact."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Command, Fork, Result, run_as_a_process_would
from quick_backend import quick_backend
from tiny_artifact import TEXT, write_checkpoint


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `mobileicsa <arguments>` in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = run_as_a_process_would(arguments)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "checkpoint")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def own_artifact(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the tiny artifact to change."""
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


@pytest.fixture
def quick() -> Iterator[None]:
    """A back end that writes at once, in place of the real ones."""
    with quick_backend():
        yield


@pytest.fixture
def quantize(checkpoint: Path, text: Path) -> list[str]:
    """Arguments of a small `quantize`, all but --output."""
    given = ["quantize", "--model", str(checkpoint), "--scheme", "w8a8", "--calibration", str(text)]
    return [*given, "--recipe", "minmax", "calibration.samples=2", "calibration.length=16"]


@pytest.fixture
def fork(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Fork]:
    """Start `mobileicsa <arguments>` in a fork of this process; `before` runs first, in the child."""

    def start(*arguments: object, before: Callable[[], None] = lambda: None) -> Fork:
        folder = tmp_path_factory.mktemp("fork")
        pid = os.fork()
        if pid == 0:
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
            # Ignored where the suite itself runs in a shell's background; a user's command is not.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                before()
                os._exit(run_as_a_process_would(arguments))
            finally:
                os._exit(99)
        return Fork(pid, folder)

    return start
