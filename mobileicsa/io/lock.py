"""`OutputLock`: at most one process works on an output folder."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.io.atomic import WriteFault, writing

MAX_BYTES = 4096

log = logging.getLogger(__name__)


class OutputLock:
    """Advisory lock on `<output>.lock` for the length of a `with` block; the file says who holds it. Makes its parents.

    The kernel frees the lock of a process that dies, so a file left behind by one is taken over at once. Where another
    run holds it, EnvironmentFault, or with `waits` a wait until that run ends.
    """

    def __init__(self, output: Path, *, waits: bool = False) -> None:
        output, self._waits = output.resolve(), waits
        self.path = output.with_name(f"{output.name}.lock")
        self._descriptor = -1

    def __enter__(self) -> Self:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._acquire()
            note = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(note).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Unlinked while held: whoever opened the file before sees that its name is gone, and tries again.
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._lock(descriptor)
                if self._is_current(descriptor):
                    self._check_left_behind(descriptor)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if self._waits:
                log.warning("%s: waiting for another run (%s)", self.path, _holder(_read(descriptor)))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                return
            raise EnvironmentFault(
                f"{self.path}: another run works on this output ({_holder(_read(descriptor))})",
                hint="wait until it ends, or choose another --output",
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise WriteFault(
                    f"{self.path}: this file system cannot lock files", hint="choose an --output on a local disk"
                ) from error
            raise

    def _is_current(self, descriptor: int) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))

    def _check_left_behind(self, descriptor: int) -> None:
        note = _read(descriptor)
        if not note:
            return
        # On a network disk the kernel of another machine may hold a lock that ours does not know of.
        if note.get("host") != socket.gethostname():
            raise EnvironmentFault(
                f"{self.path}: claimed on another machine ({_holder(note)})",
                hint=f"if that run is dead, remove the file: rm '{self.path}'",
            )
        log.warning("%s: left behind by a run that died (%s), taken over", self.path, _holder(note))


def _read(descriptor: int) -> dict[str, Any]:
    try:
        note = json.loads(os.pread(descriptor, MAX_BYTES, 0))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _holder(note: dict[str, Any]) -> str:
    if not note:
        return "holder not recorded"
    return f"pid {note.get('pid')} on {note.get('host')}, since {note.get('started')}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
