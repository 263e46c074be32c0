"""Numbers as people read them. What was not measured is a dash, never a guess."""

from __future__ import annotations

DASH = "—"
BACKEND_NAMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch", "simulator": "simulator", "float": "float32"}


def backend_name(name: str) -> str:
    return BACKEND_NAMES.get(name, name)


def size(count: float | None) -> str:
    """Bytes in decimal units, as disks and app stores count."""
    if count is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"


def number(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def significant(value: float | None) -> str:
    """Three significant digits, as a speed deserves."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent; one that is not whole never shows as 100 %."""
    if value is None:
        return DASH
    text = f"{100 * value:.{digits}f}"
    if value < 1 and float(text) == 100:
        text = f"{100 - 10**-digits:.{digits}f}"
    return f"{text} %"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def visible(text: str) -> str:
    """A token's text with blanks that can be seen."""
    for plain, shown in (("\n", "↵"), ("\t", "⇥"), (" ", "␣")):
        text = text.replace(plain, shown)
    return text or "∅"
