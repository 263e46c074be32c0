"""The form of `Backend.placement`: kernels counted by kind, the same whichever runtime they were found in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

KINDS = ("integer", "float", "boundary", "outside")


def placement_facts(
    kernels: Sequence[tuple[str, str]], products: Iterable[str], fallbacks: list[dict[str, str]]
) -> dict[str, Any]:
    """`kernels` are (operator, kind) of each executed kernel, `products` the kind of each matrix product."""
    totals = Counter(kind for _, kind in kernels)
    by_op: dict[str, Counter[str]] = {}
    for op, kind in kernels:
        by_op.setdefault(op, Counter())[kind] += 1
    return {
        **{kind: totals[kind] for kind in KINDS},
        "products": {"integer": 0, "float": 0, **Counter(products)},
        "by_op": {op: dict(by_op[op]) for op in sorted(by_op)},
        "fallbacks": fallbacks,
    }
