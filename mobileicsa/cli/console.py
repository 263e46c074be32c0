"""The rich console of a command: fixed width where no terminal tells one, and a closed pipe is an error like others."""

from __future__ import annotations

import errno
import os
from typing import TextIO

from rich.console import Console

# Wide enough for paths and hints where no terminal tells a width (a pipe, a log file).
PIPE_WIDTH = 120


class CommandConsole(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process on the spot."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def open_console(stream: TextIO) -> Console:
    console = CommandConsole(file=stream, highlight=False)
    return console if console.is_terminal else CommandConsole(file=stream, width=PIPE_WIDTH, highlight=False)
