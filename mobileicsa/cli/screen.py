"""`Screen`: the terminal as a command sees it: answers on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mobileicsa.cli.log import log_to
from mobileicsa.cli.streams import Streams

if TYPE_CHECKING:
    from rich.console import Console

    from mobileicsa.cli.answer import Answer
    from mobileicsa.cli.progress import Bars, Lines, Share


class Screen:
    """With `json` stdout gets one JSON document and nothing else; `debug` shows tracebacks and library noise."""

    def __init__(self, *, json: bool, debug: bool) -> None:
        self.json, self.debug = json, debug
        self.streams = Streams()

    @cached_property
    def out(self) -> Console:
        from mobileicsa.cli.console import open_console

        return open_console(self.streams.out)

    @cached_property
    def err(self) -> Console:
        from mobileicsa.cli.console import open_console

        return open_console(self.streams.err)

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a command runs: libraries are kept quiet, our own warnings go to stderr."""
        with self.streams.reserved(show_noise=self.debug), log_to(self.err, debug=self.debug):
            yield

    @contextmanager
    def progress(self, outline: Sequence[Share] = ()) -> Iterator[Bars | Lines]:
        """Bars with time left on a terminal, one line a step elsewhere. `outline` gives the time left overall."""
        from mobileicsa.cli.progress import Bars, Lines

        if self.err.is_terminal and not self.err.is_dumb_terminal:
            with Bars(self.err, outline) as bars:
                yield bars
        else:
            yield Lines(self.err, outline)

    def note(self, text: str) -> None:
        """A line for a person, on stderr; not with --json."""
        if not self.json:
            self.err.print(text, markup=False, highlight=False, soft_wrap=True)

    def emit(self, answer: Answer) -> None:
        if self.json:
            self.emit_json(answer.document)
        else:
            answer.show(self.out)

    def emit_json(self, document: dict[str, Any]) -> None:
        # Escapes keep every locale able to carry it; UTF-8 needs none and stays readable.
        ascii_only = self.streams.out.encoding.lower().replace("-", "") != "utf8"
        text = json.dumps(_finite(document), indent=2, ensure_ascii=ascii_only, allow_nan=False)
        # Half a surrogate pair (a broken file name) has no UTF-8 form; as an escape it is valid JSON.
        text = "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text)
        self.streams.out.write(text + "\n")
        self.streams.out.flush()


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
