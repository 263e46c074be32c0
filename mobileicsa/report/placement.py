"""Where each operation runs, per back end, from the facts that its writer recorded."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.words import DASH

BOUNDARIES = ("QuantizeLinear", "DequantizeLinear")


def placement_rows(targets: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each target and back end: counts of integer, float, boundary and delegated operations of decode."""
    return [
        {"target": target, "backend": backend, **_counts(row["facts"])}
        for target, exports in targets.items()
        for backend, row in exports.items()
    ]


def _counts(facts: dict[str, Any]) -> dict[str, Any]:
    if "placement" in facts:
        found = facts["placement"]
        return {
            "integer": str(found["integer"]),
            "float": str(found["float"]),
            "boundary": str(found["boundary"]),
            "outside": str(found["outside"]),
            "note": f"{_products(found['products'])}; {_fallbacks(found['fallbacks'])}",
            "detail": {op: _sum(counts) for op, counts in found.get("by_op", {}).items()},
        }
    if "delegates" in facts:
        return _delegated(facts)
    ops: dict[str, int] = facts.get("ops", {})
    return {
        "integer": DASH,
        "float": DASH,
        "boundary": str(sum(ops.get(name, 0) for name in BOUNDARIES)) if ops else DASH,
        "outside": DASH,
        "note": "operators as written in the file; the runtime that loads it decides" if ops else "nothing recorded",
        "detail": ops,
    }


def _delegated(facts: dict[str, Any]) -> dict[str, Any]:
    outside: dict[str, int] = facts.get("ops_outside_delegates", {})
    forms: dict[str, int] = facts.get("forms", {})
    integer = sum(count for name, count in forms.items() if name.startswith("int8_to"))
    wide = sum(count for name, count in forms.items() if "float" in name and not name.startswith("int8_to"))
    delegates = facts["delegates"]
    return {
        "integer": str(integer) if forms else DASH,
        "float": str(wide) if forms else DASH,
        "boundary": DASH,
        "outside": str(sum(outside.values())),
        "note": f"{delegates} delegate{'' if delegates == 1 else 's'}; "
        + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in forms.items()),
        "detail": outside,
    }


def _products(products: dict[str, int]) -> str:
    if not products:
        return ""
    return f"matrix products: {products.get('integer', 0)} integer, {products.get('float', 0)} float"


def _fallbacks(found: list[dict[str, str]]) -> str:
    """What a strict verify would refuse."""
    if not found:
        return "nothing in float that the target does not declare"
    return f"{len(found)} in float that the target does not declare, such as {found[0]['node']}: {found[0]['reason']}"


def _sum(counts: dict[str, int]) -> int:
    return sum(counts.values())
