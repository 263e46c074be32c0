"""What a command leaves, and how to run one in this process as a process of its own would."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


@dataclass(frozen=True)
class Fork:
    """A command in a child process, its output in two files."""

    pid: int
    folder: Path

    def wait(self) -> Result:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Result(code, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text())
