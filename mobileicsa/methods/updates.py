"""`Update`: what a client sends after a round, and the guard that drops bad ones before they touch the model."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Arrays = Mapping[str, Array]
# Below this share of the model's own size, a round's median change says nothing about what is huge.
QUIET_SHARE = 1e-6

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Update:
    """Parameters after local training, not differences.

    `arrays` may leave keys out (a client of a smaller depth budget), and where the guard allows `corners` an array may
    be the leading corner of the model's (a narrower client, a lower LoRA rank): `model[:n0, :n1, ...]`.
    """

    client: str
    round: int
    examples: int
    arrays: Arrays


class Reason(StrEnum):
    """Why an update was dropped."""

    UNKNOWN_CLIENT = "unknown_client"
    WRONG_ROUND = "wrong_round"
    SENT_TWICE = "sent_twice"
    EXAMPLE_COUNT = "example_count"
    NO_KEYS = "no_keys"
    UNKNOWN_KEY = "unknown_key"
    WRONG_DTYPE = "wrong_dtype"
    WRONG_SHAPE = "wrong_shape"
    NOT_FINITE = "not_finite"
    HUGE_NORM = "huge_norm"


@dataclass(frozen=True, kw_only=True)
class Rejection:
    client: str
    round: int
    reason: Reason
    detail: str


@dataclass(kw_only=True)
class Guard:
    """What a server believes of its clients.

    - `examples`: the count that each client registered with; None: any client, up to `max_examples`;
    - `max_norm_ratio`: RMS change of an update over the round's median (alone: over the last accepted ones');
    - `max_step_ratio`: RMS change over the model's own RMS, which also holds in a first round of one client.
    """

    examples: Mapping[str, int] | None = None
    max_examples: int = 1_000_000
    max_norm_ratio: float = 10.0
    max_step_ratio: float = 100.0
    corners: bool = False
    _seen: set[tuple[str, int]] = field(default_factory=set)
    _usual: float | None = None

    def screen(self, updates: Iterable[Update], state: Arrays, round: int) -> tuple[list[Update], list[Rejection]]:
        """Accepted updates and the others' rejections, each logged. `state`: the model that clients were sent."""
        sound: list[Update] = []
        rejections: list[Rejection] = []
        for update in updates:
            problem = self._problem(update, state, round)
            if problem is None:
                self._seen.add((update.client, update.round))
                sound.append(update)
            else:
                rejections.append(Rejection(client=update.client, round=round, reason=problem[0], detail=problem[1]))
        accepted, huge = self._by_norm(sound, state, round)
        rejections += huge
        for rejection in rejections:
            log.warning(
                "round %d: update of client %s dropped: %s (%s)",
                *(rejection.round, rejection.client, rejection.reason.value, rejection.detail),
            )
        return accepted, rejections

    def _problem(self, update: Update, state: Arrays, round: int) -> tuple[Reason, str] | None:
        if update.round != round:
            return Reason.WRONG_ROUND, f"says round {update.round}"
        if (update.client, update.round) in self._seen:
            return Reason.SENT_TWICE, "an update of this client and round came before"
        return self._count_problem(update) or self._array_problem(update, state)

    def _count_problem(self, update: Update) -> tuple[Reason, str] | None:
        if self.examples is not None and update.client not in self.examples:
            return Reason.UNKNOWN_CLIENT, "never registered"
        most = self.max_examples if self.examples is None else self.examples[update.client]
        if not 1 <= update.examples <= most:
            return Reason.EXAMPLE_COUNT, f"claims {update.examples}, at most {most}"
        return None

    def _array_problem(self, update: Update, state: Arrays) -> tuple[Reason, str] | None:
        if not update.arrays:
            return Reason.NO_KEYS, "holds no array"
        for key, array in update.arrays.items():
            if key not in state:
                return Reason.UNKNOWN_KEY, key
            if array.dtype != state[key].dtype:
                return Reason.WRONG_DTYPE, f"{key}: {array.dtype}, expected {state[key].dtype}"
            if not self._fits(array.shape, state[key].shape):
                return Reason.WRONG_SHAPE, f"{key}: {array.shape}, expected {state[key].shape}"
            if not np.isfinite(array).all():
                return Reason.NOT_FINITE, key
        return None

    def _fits(self, shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
        if not self.corners or len(shape) != len(whole):
            return shape == whole
        return all(1 <= part <= full for part, full in zip(shape, whole, strict=True)) or shape == whole

    def _by_norm(self, updates: Sequence[Update], state: Arrays, round: int) -> tuple[list[Update], list[Rejection]]:
        changes = [rms_change(update.arrays, state) for update in updates]
        if not changes:
            return [], []
        size = rms(state.values())
        # The low median: of two updates the smaller one is taken for the usual one.
        usual = statistics.median_low(changes) if len(changes) > 1 or self._usual is None else self._usual
        most = min(self.max_norm_ratio * max(usual, QUIET_SHARE * size), self.max_step_ratio * max(size, QUIET_SHARE))
        accepted, rejections = [], []
        for update, change in zip(updates, changes, strict=True):
            if change <= most:
                accepted.append(update)
                continue
            detail = f"RMS change {change:.3g}, at most {most:.3g} here"
            rejections.append(Rejection(client=update.client, round=round, reason=Reason.HUGE_NORM, detail=detail))
        if accepted:
            self._usual = statistics.median_low([change for change in changes if change <= most])
        return accepted, rejections


def corner(array: Array, shape: tuple[int, ...]) -> Array:
    """The leading part of `array` of this shape; a view."""
    return array[tuple(slice(0, size) for size in shape)]


def rms_change(arrays: Arrays, state: Arrays) -> float:
    """Root mean square difference over everything that `arrays` hold; comparable between clients of any budget."""
    return rms(
        array.astype(np.float64) - corner(state[key], array.shape).astype(np.float64) for key, array in arrays.items()
    )


def rms(arrays: Iterable[Array]) -> float:
    total, count = 0.0, 0
    for array in arrays:
        total += float(np.square(array, dtype=np.float64).sum())
        count += array.size
    return float(np.sqrt(total / max(count, 1)))
