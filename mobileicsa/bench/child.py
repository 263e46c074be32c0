"""The parent's end of a bench worker: start it, ask it, turn what goes wrong into an error with a name."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from mobileicsa.core import errors


class Child:
    """One worker process. Use as a context manager: it never outlives the bench."""

    def __init__(self, name: str, module: str = "mobileicsa.bench.worker") -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise errors.EnvironmentFault(
                self._obituary(command), hint="look for a memory limit: see `mobileicsa doctor`"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"], errors.MobileICSAError)
            if kind is errors.Unsupported:
                kind = errors.InputError
            raise kind(f"{self.name}: {answer['message']}", hint=answer["hint"])
        return answer

    def _obituary(self, command: str) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"{self.name}: the bench process was {how} during {command}" + (f": {lines[-1]}" if lines else "")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                # A dead worker leaves unread bytes in the pipe, which close would try to write.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
