"""Injection point of the crash tests: MOBILEICSA_FAULT="<stage>:<moment>" kills the process there.

Moments: `kill` in the middle of a stage's write, `before` and `after` its completion mark.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "MOBILEICSA_FAULT"


def armed(stage: str, moment: str) -> bool:
    return os.environ.get(VARIABLE) == f"{stage}:{moment}"


def fault_point(stage: str, moment: str) -> None:
    """Die as by `kill -9` if the crash test asked for it here."""
    if armed(stage, moment):
        os.kill(os.getpid(), signal.SIGKILL)
