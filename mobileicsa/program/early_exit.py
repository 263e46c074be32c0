"""When to stop: thresholds on the largest softmax probability, refitted after quantisation, or a budget of MACs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileicsa.core.errors import UsageError
from mobileicsa.program.backend import Array, StageSession

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ExitTable:
    """`macs` (E,): multiply-accumulates up to each exit; confidences (samples, E) of the calibration inputs."""

    macs: tuple[int, ...]
    float_confidence: Floats
    confidence: Floats

    def refitted(self, threshold: float) -> Floats:
        """Thresholds (E,) for the integer model with which as many samples stop as in float with `threshold`.

        The largest confidences of the two models belong together, the second largest, and so on. After the last exit
        there is nothing to decide: 0.
        """
        if not 0 <= threshold <= 1:
            raise UsageError(f"--threshold {threshold}: is a probability, 0 to 1")
        pairs = zip(np.sort(self.float_confidence, axis=0).T, np.sort(self.confidence, axis=0).T, strict=True)
        found = [_between(threshold, before, after) for before, after in pairs]
        return np.array([*found[:-1], 0.0])

    def for_budget(self, macs: float) -> float:
        """The largest threshold with which the calibration inputs take no more than so many MACs on average."""
        if macs < self.macs[0]:
            raise UsageError(f"--mac-budget {macs:.0f}: the first exit alone takes {self.macs[0]} MACs")
        low, high = 0.0, 1.0
        if self.mean_macs(high) <= macs:
            return high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.mean_macs(middle) <= macs else (low, middle)
        return low

    def mean_macs(self, threshold: float) -> float:
        """Of the integer model on the calibration inputs."""
        return float(np.array(self.macs)[exits_taken(self.confidence, self.refitted(threshold))].mean())


def _between(threshold: float, before: Floats, after: Floats) -> float:
    return float(np.interp(threshold, [0.0, *before, 1.0], [0.0, *after, 1.0]))


def exits_taken(confidence: Floats, thresholds: Floats) -> NDArray[np.int64]:
    """First exit (samples,) whose confidence (samples, E) reaches its threshold (E,); the last one at the latest."""
    reached = confidence >= thresholds
    reached[:, -1] = True
    first: NDArray[np.int64] = reached.argmax(axis=1)
    return first


def softmax(logits: Floats) -> Floats:
    """(..., classes) to the same."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


@dataclass(frozen=True, kw_only=True)
class Decision:
    """`exit` counts from 1; `macs` up to it."""

    exit: int
    label: int
    confidence: float
    macs: int


def walk(session: StageSession, names: Sequence[str], sample: Any) -> Iterator[list[Array]]:
    """What each stage of `names` gives for one sample (channels, height, width), as the batch of it: logits, and what
    goes to the next as it is. A stage runs when it is asked for."""
    handed = [np.asarray(sample, dtype=np.float32)[None]]
    for name in names:
        given = session.run(name, handed)
        yield given
        handed = given[1:]


def stages_until(session: StageSession, names: Sequence[str], sample: Any, thresholds: Floats) -> list[Floats]:
    """Logits (classes,) of the exits of one sample that are passed, the one taken last."""
    found: list[Floats] = []
    for given, threshold in zip(walk(session, names, sample), thresholds, strict=False):
        found.append(given[0][0].astype(np.float64))
        if softmax(found[-1]).max() >= threshold:
            break
    return found


def decide(
    session: StageSession, names: Sequence[str], sample: Any, thresholds: Floats, macs: Sequence[int]
) -> Decision:
    """Run stages until one is sure enough; deeper ones do not run."""
    passed = stages_until(session, names, sample, thresholds)
    odds = softmax(passed[-1])
    return Decision(
        exit=len(passed), label=int(odds.argmax()), confidence=float(odds.max()), macs=macs[len(passed) - 1]
    )


def curve(confidence: Floats, right: NDArray[np.bool_], macs: Sequence[int], thresholds: Sequence[Floats]) -> list[Any]:
    """{"accuracy", "mean_macs", "taken"} for each of the thresholds (E,); `right` (samples, E): predicted rightly.

    `taken`: share of the samples that stop at each exit.
    """
    rows = []
    for each in thresholds:
        taken = exits_taken(confidence, each)
        rows.append(
            {
                "accuracy": float(right[np.arange(len(taken)), taken].mean()),
                "mean_macs": float(np.array(macs)[taken].mean()),
                "taken": (np.bincount(taken, minlength=len(macs)) / len(taken)).tolist(),
            }
        )
    return rows
