"""The promised form of result.json, checked key by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEYS = {"method", "metrics", "baselines", "verdict", "artifacts", "environment"}


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a finished run, which must have the promised form."""
    document: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert set(document) == KEYS
    seeds = document["environment"]["seeds"]
    for metrics in (document["metrics"], *document["baselines"].values()):
        assert metrics
        for estimate in metrics.values():
            _check_estimate(estimate, len(seeds))
    assert {name: type(value) for name, value in document["verdict"].items()} == {
        "claim": str,
        "holds": bool,
        "why": str,
    }
    for path in document["artifacts"].values():
        assert (folder / path).exists()
    return document


def _check_estimate(estimate: dict[str, Any], seeds: int) -> None:
    assert set(estimate) == {"mean", "ci", "per_seed"}
    assert len(estimate["per_seed"]) == seeds
    if seeds == 1:
        assert estimate["ci"] is None
    else:
        low, high = estimate["ci"]
        assert low <= estimate["mean"] <= high
