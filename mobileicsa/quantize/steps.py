"""What a run of stages is given from outside: a place for finished steps, and somebody to tell of progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor


class StageStore(Protocol):
    """Where finished steps are kept (mobileicsa.io.stages); a step counts only when wholly written."""

    def done(self, stage: str, input_hash: str) -> bool: ...

    def load(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def save(self, stage: str, input_hash: str, tensors: dict[str, Tensor], data: dict[str, Any]) -> None: ...


class Progress(Protocol):
    """A named step with a known number of ticks; the command line draws it."""

    def step(self, title: str, total: int) -> Callable[[], None]: ...


class Quiet:
    """Progress that shows nothing."""

    def step(self, title: str, total: int) -> Callable[[], None]:
        return lambda: None
