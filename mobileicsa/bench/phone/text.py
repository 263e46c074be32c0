"""What a phone prints, made fit to be shown: no control characters, no long lines."""

from __future__ import annotations

MAX_SHOWN = 300


def clean(text: str, limit: int = MAX_SHOWN) -> str:
    """One line: control characters and line ends as escapes, at most `limit` characters."""
    # Far more than will be shown is never escaped: a device may print a line of gigabytes.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "…"


def last_line(text: str) -> str:
    """The last line that says something, cleaned; programs print their error last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return clean(lines[-1]) if lines else ""
