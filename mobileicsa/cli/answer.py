"""`Answer`: what a command has to say, as one JSON document and as text for a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`document` is printed with --json, `show` draws the same for a person; `exit_code` 5: verification failed."""

    document: dict[str, Any]
    show: Callable[[Console], None]
    exit_code: int = 0
