"""The error types of mobileicsa: each says what is wrong, where, why, and what to do next.

Exit codes follow the command line contract: 1 failure, 2 usage, 3 bad input, 4 environment,
5 verification failed, 6 device.
"""

from __future__ import annotations


class MobileICSAError(Exception):
    """Base of every error that a user may see. `hint` is the remedy, printed on its own line."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(MobileICSAError):
    """The request itself is wrong: contradicting flags, an output that exists."""

    exit_code = 2


class InputError(MobileICSAError):
    """A file or value given by the user is broken, unsafe or not supported."""

    exit_code = 3


class SchemeError(InputError):
    """A scheme or recipe is unknown or contradicts itself."""


class EnvironmentFault(MobileICSAError):
    """The machine cannot do it: memory, disk, permission, a missing optional tool, a held lock."""

    exit_code = 4


class VerificationError(MobileICSAError):
    """An artifact is not what its manifest or its golden vectors say."""

    exit_code = 5


class DeviceError(MobileICSAError):
    """A phone or other device did not do what was asked."""

    exit_code = 6


class Unsupported(MobileICSAError):
    """A back end cannot express an operation; never replaced by a silent float fallback."""

    exit_code = 3

    def __init__(self, op: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{op}: {reason}", hint=hint)
        self.op = op
        self.reason = reason
