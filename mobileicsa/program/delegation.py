"""How much of a lowered program an accelerator takes, in one form for every back end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def delegation(facts: Mapping[str, Any], placement: Mapping[str, Any]) -> dict[str, Any]:
    """`delegated_share` (of the operators), `float_tensors` (left in what was lowered), `unsupported` ({"op",
    "reason"}) and `estimates` (a compiler's, never measurements) of what one back end wrote.

    What a back end does not say itself is told from where its operators run: those outside of the accelerated part, or
    in float although the target does not say so, are not delegated, and each float kernel leaves a float tensor.
    """
    kernels = placement["integer"] + placement["float"] + placement["outside"]
    lost = max(placement["outside"], len(placement["fallbacks"]))
    told = {
        "delegated_share": 1.0 - lost / kernels if kernels else 1.0,
        "float_tensors": placement["float"],
        "unsupported": [{"op": f["node"], "reason": f["reason"]} for f in placement["fallbacks"]],
        "estimates": {},
    }
    return {key: facts.get(key, value) for key, value in told.items()}


def of_all(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same of a target with several back ends: the least share, all tensors and operators, estimates by name."""
    several = len(facts) > 1
    return {
        "delegated_share": min(f["delegated_share"] for f in facts.values()),
        "float_tensors": sum(f["float_tensors"] for f in facts.values()),
        "unsupported": [{"backend": name, **row} for name, f in facts.items() for row in f["unsupported"]],
        "estimates": {n: f["estimates"] for n, f in facts.items() if f["estimates"]}
        if several
        else next(iter(facts.values()))["estimates"],
    }
