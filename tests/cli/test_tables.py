"""Tables and facts at any width keep every cell; bars keep foreign prints away from the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mobileicsa.cli.progress import Bars
from mobileicsa.cli.tables import show_facts, show_table, size

COLUMNS = ("back end", "result", "equal integers", "largest step", "logits equal", "greedy tokens equal")
ROWS = [
    ("simulator", "ok", "100 %", 0, "99.1 %", None),
    ("onnx", "skipped: not installed: pip install 'mobileicsa[onnx]'", "98.2 %", 11, "72.5 %", "39.6 %"),
]


def shown(width: int, *, left: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_table(console, COLUMNS, ROWS, left=left)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    return str(text)


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120, 200])
def test_a_table_keeps_every_number_at_any_width(width: int) -> None:
    words = "".join(shown(width, left=2).split())
    for cell in ("100%", "99.1%", "98.2%", "11", "72.5%", "39.6%"):
        assert cell in words


def test_a_table_too_wide_for_its_terminal_is_turned() -> None:
    assert "onnx" in shown(60, left=2).splitlines()[0]
    assert "onnx" not in shown(120, left=2).splitlines()[0]


def test_facts_are_wrapped_beside_their_names_without_trailing_blanks() -> None:
    console = Console(file=io.StringIO(), width=40)
    show_facts(console, [("name", "some words " * 6), ("left out", None)])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("name  some")
    assert len(lines) == 2
    assert all(line == line.rstrip() and len(line) <= 40 for line in lines)
    assert lines[1].startswith("      some")


def test_sizes_are_in_the_largest_unit_that_leaves_one() -> None:
    assert [size(count) for count in (None, 512, 2048, 3 << 20, 5 << 30)] == [
        None,
        "512 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.00 GiB",
    ]


def test_what_a_library_prints_does_not_reach_the_terminal_of_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Bars(console) as bars:
        tick = bars.step("layer 1/2", 1)
        print("noise")
        tick()
    assert "noise" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert "layer 1/2" in console.file.getvalue()  # type: ignore[attr-defined]
    assert capsys.readouterr().out == "noise\n"


def test_a_step_that_begins_within_another_takes_its_place_and_the_others_ticks_are_none() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Bars(console) as bars:
        outer = bars.step("verify qnn-htp", 1)
        bars.step("write qnn-htp", 1)()
        outer()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "verify qnn-htp" in shown
    assert "write qnn-htp" in shown
