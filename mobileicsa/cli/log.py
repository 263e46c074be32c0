"""Our own log as lines on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

LOGGERS = ("mobileicsa", "mobileicsa_export")


@contextmanager
def log_to(console: Console, *, debug: bool) -> Iterator[None]:
    """What we log, with `debug` in every detail; what other libraries log is not shown here."""
    handler = _LineHandler(console)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if debug else logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _LineHandler(logging.Handler):
    """One line a record, drawn by the console so that it does not tear a progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            kind = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            text = f"{kind}{record.getMessage()}"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)
