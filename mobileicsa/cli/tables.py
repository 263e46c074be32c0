"""How answers look to a person: plain grids and small tables, sizes in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MIN_FACT_WIDTH = 16
COLUMN_GAP = 3
# A longer word, such as a path, may be broken anywhere.
MAX_WORD = 24


def show_facts(console: Console, rows: Iterable[tuple[str, Any]]) -> None:
    """Name and value side by side; rows whose value is None are left out."""
    shown = [(name, str(value)) for name, value in rows if value is not None]
    indent = max((len(name) for name, _ in shown), default=0) + 2
    room = console.width - indent
    if room < MIN_FACT_WIDTH:  # a narrow terminal: values below their names
        for name, value in shown:
            console.print(Text(name, style="dim"))
            console.print(Padding(Text(value, overflow="fold"), (0, 0, 0, 2)))
        return
    # Not a rich grid, which fills every line with blanks to its full width.
    for name, value in shown:
        for line in Text(value).wrap(console, room, overflow="fold"):
            line.rstrip()
            console.print(Text.assemble((name.ljust(indent), "dim"), line), soft_wrap=True)
            name = ""


def show_entries(console: Console, entries: Iterable[tuple[str, Iterable[tuple[str, Any]]]]) -> None:
    """Names, each with its facts below it (see `show_facts`), a blank line between two."""
    for number, (name, facts) in enumerate(entries):
        if number:
            console.print()
        console.print(name, style="bold", markup=False)
        show_facts(console, ((f"  {fact}", value) for fact, value in facts))


def show_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> None:
    """The first `left` columns are words, the others numbers; None is shown as a dash.

    Where the columns do not fit the terminal, rows and columns change places; where that does not fit, rows are
    listed one below the other.
    """
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    turned = [[column, *(row[index] for row in cells)] for index, column in enumerate(columns)]
    if _least_width(turned, left) <= console.width:
        console.print(_table(columns, cells, left, wrapped=left))
    elif _least_width([[turned[0][0], *(row[0] for row in turned)], *map(list, cells)], len(columns)) <= console.width:
        console.print(_table(turned[0], turned[1:], 1, wrapped=len(turned[0])))
    else:
        for row in cells:
            console.print(Text(row[0], style="bold"))
            show_facts(console, zip(columns[1:], row[1:], strict=True))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int, wrapped: int) -> Table:
    """The first `left` columns are justified left, the first `wrapped` may break their lines."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index < left else "right"
        table.add_column(column, justify=justify, no_wrap=index >= wrapped, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _least_width(columns: Sequence[Sequence[str]], wrapped: int) -> int:
    """Width of a table of these columns (name first), the first `wrapped` broken into words."""
    widths = [
        max(min(max(map(len, text.split() or [""])), MAX_WORD) if index < wrapped else len(text) for text in column)
        for index, column in enumerate(columns)
    ]
    return sum(widths) + COLUMN_GAP * (len(columns) - 1)


def show_list(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print(Text(title, style="bold"))
    for line in lines:
        console.print(Text(f"  {line}"))


def size(count: float | None) -> str | None:
    """Bytes in the largest unit that leaves a number of at least 1."""
    if count is None:
        return None
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def share(part: float | None) -> str | None:
    """Never rounded up to 100 %: 99.9997 % is not all."""
    if part is None:
        return None
    return "100 %" if part == 1.0 else f"{min(part * 100, 99.999):.3f} %"


def number(value: float | None, digits: int = 1) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"
