"""A run of some rows (`--only`) leaves the others of the committed result as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Rows = list[dict[str, Any]]


def refuse_other(result: dict[str, Any], earlier: dict[str, Any], same: Sequence[str]) -> None:
    """SystemExit where rows of the two results could not stand in one table: a field of `same` differs."""
    _refuse([f"{key} {result[key]}" for key in same if result[key] != earlier[key]])


def refuse_other_float(found: dict[str, float], known: dict[str, float], tolerance: float) -> None:
    """SystemExit where one of the float model's numbers is further than `tolerance` (a share of it) from the known one:
    it was another model or text. Two CPUs sum in other orders."""
    apart = [name for name, value in found.items() if abs(known.get(name, math.inf) - value) > tolerance * value]
    _refuse([f"float's {name} {found[name]:.6g}" for name in apart])


def _refuse(apart: list[str]) -> None:
    if apart:
        raise SystemExit(f"--only: {apart[0]} is not the committed result's; leave --only out to make all rows anew")


def joined(rows: Rows, earlier: Rows, names: Sequence[str], name_of: Callable[[dict[str, Any]], str]) -> Rows:
    """`rows` in the place of `earlier` ones of the same name, in the order of `names`; unknown names are dropped."""
    by_name = {name_of(row): row for row in [*earlier, *rows]}
    return [by_name[name] for name in names if name in by_name]


def machine(here: dict[str, Any], table: dict[str, Any]) -> dict[str, str]:
    """Words for a row that was not made on the machine of its table's `environment`; nothing where it was."""
    if (here["cores"], here["cpu"]) == (table["cores"], table["cpu"]):
        return {}
    cores = "one core" if here["cores"] == 1 else f"{here['cores']} cores"
    return {"machine": cores if here["cpu"] == table["cpu"] else f"{cores}, {here['cpu']}"}
