"""What the report, its page and `inspect` say of an artifact's adapters."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.words import share


def adapter_words(facts: dict[str, Any]) -> str:
    """One line of an adapter: what it changes, and what it does to the base's ranges."""
    rank, saturation = facts["rank"], facts["saturation"]
    ranks = f"rank {rank['most']}" if rank["least"] == rank["most"] else f"ranks {rank['least']} to {rank['most']}"
    worst = saturation["worst"][0]
    base = f", trained on {facts['base']}" if facts.get("base") else ""
    return (
        f"{facts['name']}: {ranks} at {facts['linears']} linears, {facts['parameters']:,} parameters{base}; saturates "
        f"{share(saturation['largest'])} more of {worst['edge']} ({share(saturation['limit'])} allowed)"
    )


def adapter_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The page's table: a row for each adapter, with the edges that saturate most with it."""
    return [
        {
            "words": adapter_words(facts),
            "worst": [(row["edge"], share(row["base"]), share(row["share"])) for row in facts["saturation"]["worst"]],
        }
        for facts in report.get("adapters", {}).values()
    ]
