"""From the times of single runs to the figures that a bench reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Runs:
    """Everything one contender's worker or phone said, run after run; `loads` are load times in milliseconds."""

    opened: dict[str, Any]
    prompt_tokens: int
    turns: list[dict[str, Any]] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def prefill_speeds(self) -> list[float]:
        return [self.prompt_tokens / turn["first_token_ms"] * 1000 for turn in self.turns]

    def decode_speeds(self) -> list[float]:
        return [len(turn["step_ms"]) / sum(turn["step_ms"]) * 1000 for turn in self.turns]

    def summary(self) -> dict[str, Any]:
        """Medians over runs, with the spread beside them; a step's p90 is over all steps of all runs."""
        steps = [ms for turn in self.turns for ms in turn["step_ms"]]
        first = [turn["first_token_ms"] for turn in self.turns]
        peak = max(turn["peak_rss_bytes"] for turn in self.turns)
        return {
            "load_ms": median(self.loads),
            "load_ms_range": spread(self.loads),
            "first_load_ms": self.opened["first_load_ms"],
            "first_token_ms": median(first),
            "first_token_ms_range": spread(first),
            "first_token_ms_p90": percentile(first, 90),
            "prefill_tokens_per_s": median(self.prefill_speeds()),
            "prefill_tokens_per_s_range": spread(self.prefill_speeds()),
            "decode_tokens_per_s": median(self.decode_speeds()),
            "decode_tokens_per_s_range": spread(self.decode_speeds()),
            "decode_ms_per_token": median(steps),
            "decode_ms_per_token_p90": percentile(steps, 90),
            "peak_rss_bytes": peak,
            "model_rss_bytes": max(peak - self.opened["rss_before_load_bytes"], 0),
            "turns": [
                {"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}
                for prefill, decode in zip(self.prefill_speeds(), self.decode_speeds(), strict=True)
            ],
        }


def ratios(ours: Runs, theirs: Runs) -> dict[str, Any]:
    """How many times faster ours is, turn by turn: both ran within the same moments."""
    decode = [a / b for a, b in zip(ours.decode_speeds(), theirs.decode_speeds(), strict=True)]
    prefill = [a / b for a, b in zip(ours.prefill_speeds(), theirs.prefill_speeds(), strict=True)]
    return {
        "decode_tokens_per_s": median(decode),
        "decode_tokens_per_s_range": spread(decode),
        "prefill_tokens_per_s": median(prefill),
        "prefill_tokens_per_s_range": spread(prefill),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was measured."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 100)
    return ordered[max(int(rank), 1) - 1]


def spread(values: Sequence[float]) -> list[float]:
    """Least and largest."""
    return [min(values), max(values)]
