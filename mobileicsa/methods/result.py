"""`Result`: what a method and its baselines scored over seeds, and whether its claim holds: `result.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobileicsa.core.errors import InputError

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
MAX_SEEDS = len(T_95) + 1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric over seeds. `ci`: ends of the 95 % t interval of the mean; None for one seed, which has none."""

    mean: float
    ci: tuple[float, float] | None
    per_seed: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """InputError where a value is not finite; 1 to `MAX_SEEDS` values."""
        if not 1 <= len(values) <= MAX_SEEDS:
            raise ValueError(f"{len(values)} seeds: 1 to {MAX_SEEDS}")
        if not all(map(math.isfinite, values)):
            raise InputError(f"a metric is not finite: {list(values)}", hint="training diverged: lower its rate")
        mean = statistics.fmean(values)
        half = None
        if len(values) > 1:
            half = T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
        ends = None if half is None else (mean - half, mean + half)
        return cls(mean=mean, ci=ends, per_seed=tuple(map(float, values)))

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "ci": self.ci and list(self.ci), "per_seed": list(self.per_seed)}


Metrics = Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the method claims, whether these numbers bear it out, and why (not)."""

    claim: str
    holds: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        return {"claim": self.claim, "holds": self.holds, "why": self.why}


@dataclass(frozen=True, kw_only=True)
class Result:
    """`artifacts`: role to path within the result's folder; `environment`: versions, machine, size, config, seconds."""

    method: str
    metrics: Metrics
    baselines: Mapping[str, Metrics]
    verdict: Verdict
    artifacts: Mapping[str, str]
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "metrics": _metrics_json(self.metrics),
            "baselines": {name: _metrics_json(metrics) for name, metrics in self.baselines.items()},
            "verdict": self.verdict.to_json(),
            "artifacts": dict(self.artifacts),
            "environment": dict(self.environment),
        }


def _metrics_json(metrics: Metrics) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in metrics.items()}


def paired(ours: Estimate, theirs: Estimate) -> Estimate:
    """The difference ours - theirs of runs with the same seeds."""
    return Estimate.of([a - b for a, b in zip(ours.per_seed, theirs.per_seed, strict=True)])


def judge_above(
    claim: str, metric: str, ours: Metrics, rivals: Mapping[str, Metrics], *, lower: bool = False
) -> Verdict:
    """Holds where the interval of the paired difference lies above 0 (below, with `lower`) for every rival.

    One seed has no interval, so that nothing holds for it.
    """
    sign = -1.0 if lower else 1.0
    parts, holds = [], True
    for name, metrics in rivals.items():
        difference = paired(ours[metric], metrics[metric])
        ahead = difference.ci is not None and min(sign * end for end in difference.ci) > 0
        holds &= ahead
        ends = difference.ci
        interval = "one seed, no interval" if ends is None else f"95 % {ends[0]:+.4f} to {ends[1]:+.4f}"
        parts.append(f"{difference.mean:+.4f} against {name} ({interval}){'' if ahead else ': not shown'}")
    return Verdict(claim=claim, holds=holds, why=f"{metric}: " + "; ".join(parts))
