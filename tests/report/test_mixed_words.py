"""Words about promoted linears: spans of layers, and increases that are too large for a number."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.mixed import layers_by_path, mixed_facts, spans
from mobileicsa.report.words import size


def mixed(**changes: Any) -> dict[str, Any]:
    return {
        "limits": {"budget_bytes": 60_000_000, "max_ppl_increase": None},
        "packed_bytes": 59_900_000,
        "packed_bytes_least": 53_000_000,
        "packed_bytes_most": 106_000_000,
        "candidates": 210,
        "promoted": [{"weight": "layers.0.attn.v_proj.weight", "saving": 0.1, "bytes": 55_296}],
        "predicted_increase": 0.1,
        "predicted_increase_least": 0.05,
        "predicted_increase_most": 1e30,
        "shortfall": None,
        "measured": {"increase": 0.09, "standard_error": 0.011, "tokens": 2032, "met": None},
        **changes,
    }


def test_layers_in_a_row_are_one_span() -> None:
    assert spans([0]) == "0"
    assert spans([0, 2, 3, 4, 7, 8]) == "0, 2-4, 7-8"


def test_layers_are_sorted_by_number_under_each_linear() -> None:
    names = ["layers.10.mlp.up_proj.weight", "layers.2.mlp.up_proj.weight", "layers.1.attn.q_proj.weight"]
    assert layers_by_path(names) == {"attn.q_proj": [1], "mlp.up_proj": [2, 10]}


def test_a_run_without_limits_has_nothing_to_say() -> None:
    assert mixed_facts(None, size) == []


def test_expected_and_measured_increase_stand_side_by_side() -> None:
    facts = dict(mixed_facts(mixed(), size))
    assert facts["limits"] == "60,000,000 bytes"
    assert facts["packed weights"] == "59.9 MB (53 MB without, 106 MB with all)"
    assert facts["expected loss"] == "10.0 % more perplexity (over 10000 % without, 5.0 % with all)"
    assert facts["measured loss"].startswith("9.0 % ± 1.1 % more perplexity, on 2,032 tokens")
    assert "more than the limit" not in facts["measured loss"]
    missed = {**mixed()["measured"], "met": False}
    assert "more than the limit" in dict(mixed_facts(mixed(measured=missed), size))["measured loss"]
