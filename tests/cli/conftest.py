"""Fixtures of the command line's tests: run a command in this process or a fork of it, on the tiny artifact."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from quick_backend import quick_backend
from tiny_artifact import TEXT, write_checkpoint

from mobileicsa.cli.main import execute


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        assert self.out.endswith("}\n")
        return json.loads(self.out)


Command = Callable[..., Result]


def run_as_a_process_would(arguments: Sequence[object]) -> int:
    """`execute` with Python's own streams on descriptors 1 and 2: pytest's lie elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            stream = open(descriptor, "w", 1, closefd=False, encoding="utf-8")  # noqa: SIM115  (the descriptor stays)
            patch.setattr(sys, name, stream)
        return execute([str(argument) for argument in arguments])


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


@dataclass(frozen=True)
class Fork:
    """A command in a child process, its output in two files."""

    pid: int
    folder: Path

    def wait(self) -> Result:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Result(code, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text())


@pytest.fixture
def fork(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Fork]:
    """Start `mobileicsa <arguments>` in a fork of this process; `before` runs first, in the child."""

    def start(*arguments: object, before: Callable[[], None] = lambda: None) -> Fork:
        folder = tmp_path_factory.mktemp("fork")
        pid = os.fork()
        if pid == 0:
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
            try:
                before()
                os._exit(run_as_a_process_would(arguments))
            finally:
                os._exit(99)
        return Fork(pid, folder)

    return start
