"""A run of some rows (`--only`) leaves the others of the committed result as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

FloatOf = Callable[[dict[str, Any]], dict[str, float]]
Rows = list[dict[str, Any]]

# Two CPUs sum floats in other orders.
FLOAT_TOLERANCE = 1e-3


def refuse_other(result: dict[str, Any], earlier: dict[str, Any], same: Sequence[str], float_of: FloatOf) -> None:
    """SystemExit where rows of the two results could not stand in one table: a field of `same` or one of the float
    model's numbers differs."""
    apart = [f"{key} {result[key]}" for key in same if result[key] != earlier[key]]
    known = float_of(earlier["float"])
    for name, value in float_of(result["float"]).items():
        if name not in known or abs(known[name] / value - 1) > FLOAT_TOLERANCE:
            apart.append(f"float's {name} {value:.6g}")
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
