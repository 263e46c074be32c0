"""Every way a command can fail: what it says, and its exit code."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass, replace
from typing import Any

import typer

from mobileicsa.core.errors import EnvironmentFault, MobileICSAError, UsageError, VerificationError
from mobileicsa.io.machine import available_memory, peak_memory

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
# As a shell reports a process that SIGPIPE ended.
PIPE_CLOSED = 128 + signal.SIGPIPE

# How PyTorch, ONNX Runtime, C++ and the loader of libraries say that memory ran out, inside other errors.
MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "failed to allocate memory",
    "out of memory",
    "failed to map segment from shared object",
)
MACHINE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE)


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that nothing on the way takes it for a fault of its own."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """`kind` is a stable word for scripts."""

    kind: str
    message: str
    hint: str | None
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        return {"error": {"type": self.kind, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}}


def failure_of(error: BaseException) -> Failure:
    """What to tell the user about an exception that ended a command; its notes join the hint."""
    failure = _failure_of(error)
    hints = [*([failure.hint] if failure.hint else []), *getattr(error, "__notes__", [])]
    return replace(failure, hint="; ".join(hints) or None)


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, MobileICSAError):
        return Failure(kind=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code)
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt):
        return Failure(kind="Interrupted", message="interrupted", hint=None, exit_code=INTERRUPTED)
    if isinstance(error, Terminated):
        return Failure(kind="Terminated", message="terminated", hint=None, exit_code=TERMINATED)
    if isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, ImportError)) and _is_memory(str(error))):
        return Failure(
            kind=EnvironmentFault.__name__,
            message=f"memory ran out ({peak_memory() >> 20:,} MiB in use, {available_memory() >> 20:,} MiB available)",
            hint="close other programs or take a machine with more memory",
            exit_code=EnvironmentFault.exit_code,
        )
    if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
        where = f"{error.filename}: " if error.filename else ""
        return Failure(
            kind=EnvironmentFault.__name__,
            message=f"{where}{error.strerror}",
            hint="check free space and permissions",
            exit_code=EnvironmentFault.exit_code,
        )
    first_line = (str(error).strip() or "no message").splitlines()[0][:300]
    return Failure(
        kind="InternalError",
        message=f"internal error: {type(error).__name__}: {first_line}",
        hint="this is a defect of mobileicsa: run again with --debug and report the traceback",
        exit_code=MobileICSAError.exit_code,
    )


def _usage(error: typer.TyperException) -> Failure:
    near = getattr(error, "possibilities", None)
    # Typer passes on the wording of the library that checks values.
    message = (error.message if near else error.format_message()).replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mobileicsa"
    hint = f"did you mean {near[0]}?" if near else f"see `{command} --help`"
    return Failure(kind=UsageError.__name__, message=message.rstrip("."), hint=hint, exit_code=UsageError.exit_code)


def _is_memory(text: str) -> bool:
    return any(words in text.lower() for words in MEMORY_WORDS)


def verification_code(result: dict[str, Any]) -> int:
    """Exit code of a verification: 4 where nothing is wrong but that a back end could not run."""
    if result["ok"]:
        return 0
    rows = result["backends"].values()
    only_skipped = any("skipped" in row for row in rows) and all(row.get("ok", True) for row in rows)
    return (EnvironmentFault if only_skipped else VerificationError).exit_code
