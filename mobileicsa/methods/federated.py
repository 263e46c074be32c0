"""Federated rounds in one process: a server that guards and joins updates, and a simulation of its clients."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mobileicsa.methods.aggregate import Aggregate, weighted_mean
from mobileicsa.methods.updates import Array, Arrays, Guard, Rejection, Update

# fit(client, round, model) -> its update, or None where it dropped out.
Fit = Callable[[str, int, Arrays], Update | None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What became of a round; a `failed` one had fewer sound updates than the quorum and left the model as it was."""

    round: int
    accepted: int
    rejected: tuple[Rejection, ...]
    failed: bool


@dataclass(kw_only=True)
class Server:
    """The model by key, and its rounds. `quorum`: sound updates that a round needs."""

    state: dict[str, Array]
    guard: Guard = field(default_factory=Guard)
    aggregate: Aggregate = weighted_mean
    quorum: int = 1
    round: int = 0
    reports: list[RoundReport] = field(default_factory=list)

    def close(self, updates: Iterable[Update]) -> RoundReport:
        """End the present round with what came; whatever comes later says a round that is over, and is dropped."""
        accepted, rejected = self.guard.screen(updates, self.state, self.round)
        failed = len(accepted) < self.quorum
        if failed:
            log.warning("round %d: %d sound updates of %d: model unchanged", self.round, len(accepted), self.quorum)
        else:
            self.state = self.aggregate(self.state, accepted)
        report = RoundReport(round=self.round, accepted=len(accepted), rejected=tuple(rejected), failed=failed)
        self.reports.append(report)
        self.round += 1
        return report

    def counts(self) -> dict[str, int]:
        """Accepted and failed over all rounds, and how many updates were dropped for each reason."""
        reasons = Counter(rejection.reason.value for report in self.reports for rejection in report.rejected)
        return {
            "accepted": sum(report.accepted for report in self.reports),
            "rejected": sum(reasons.values()),
            "failed_rounds": sum(report.failed for report in self.reports),
            **{f"rejected_{reason}": count for reason, count in sorted(reasons.items())},
        }


def simulate(
    server: Server,
    clients: Sequence[str],
    fit: Fit,
    *,
    rounds: int,
    per_round: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """`rounds` rounds of `per_round` clients each, drawn without repetition; one after the other, in this process."""
    draw = np.random.default_rng(seed)
    for _ in range(rounds):
        chosen = draw.choice(len(clients), size=min(per_round, len(clients)), replace=False)
        sent = (fit(clients[index], server.round, server.state) for index in chosen)
        server.close(update for update in sent if update is not None)
        tick()
