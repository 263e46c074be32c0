"""Standard output belongs to the answer: while a command works, what libraries print goes elsewhere, C prints too."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Streams:
    """`out` and `err` write to the real standard output and error, whatever descriptors 1 and 2 point to meanwhile."""

    def __init__(self) -> None:
        _occupy_standard_descriptors()
        self.out = _duplicate(1, sys.stdout)
        self.err = _duplicate(2, sys.stderr)

    @contextmanager
    def reserved(self, *, show_noise: bool) -> Iterator[None]:
        """Descriptors 1 and 2 lead nowhere, or both to standard error with `show_noise`."""
        _flush(sys.stdout, sys.stderr)
        saved = os.dup(1), os.dup(2)
        sink = os.dup(2) if show_noise else os.open(os.devnull, os.O_WRONLY)
        # A native crash would otherwise be silent: its message went down the sink.
        faulthandler.enable(self.err)
        try:
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            yield
        finally:
            _flush(sys.stdout, sys.stderr)
            faulthandler.disable()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in (*saved, sink):
                os.close(descriptor)

    def close(self) -> None:
        """What nobody reads any more, or a full disk does not take, is dropped."""
        for stream in (self.out, self.err):
            with suppress(OSError):
                stream.close()


def _occupy_standard_descriptors() -> None:
    """A descriptor closed by the caller (`>&-`) would be taken by the next file opened, and written over."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _duplicate(descriptor: int, like: TextIO | None) -> TextIO:
    """A text stream of its own on the same place; characters that its encoding lacks become "?", never an error."""
    encoding = (like.encoding if like is not None else None) or "utf-8"
    return io.TextIOWrapper(
        os.fdopen(os.dup(descriptor), "wb"),
        encoding=encoding,
        errors="replace",
        line_buffering=True,
        write_through=True,
    )


def _flush(*streams: TextIO | None) -> None:
    for stream in streams:
        if stream is not None and not stream.closed:
            stream.flush()
