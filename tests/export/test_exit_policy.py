"""When early-exit stages stop: thresholds, refitted ones, budgets."""

from __future__ import annotations

import numpy as np
import pytest

from mobileicsa.core.errors import UsageError
from mobileicsa.program.early_exit import ExitTable, decide, exits_taken, softmax


class Scripted:
    """Stages with given logits that count their calls."""

    def __init__(self, logits: list[list[float]]) -> None:
        self.logits, self.calls = logits, []

    def run(self, name: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self.calls.append(name)
        return [np.array([self.logits[len(self.calls) - 1]], np.float32), np.zeros((1, 1), np.int8)]

    def close(self) -> None: ...


@pytest.mark.parametrize(("threshold", "exit"), [(0.0, 1), (0.6, 1), (0.8, 2), (0.99, 3)])
def test_policy_stops_where_the_threshold_says(threshold: float, exit: int) -> None:
    odds = [[0.7, 0.3], [0.1, 0.9], [0.5, 0.5]]
    stages = Scripted(np.log(odds).tolist())
    names = ["stage_0", "stage_1", "stage_2"]
    decision = decide(stages, names, np.zeros(1), np.array([threshold, threshold, 0.0]), (10, 20, 30))
    assert (decision.exit, decision.macs) == (exit, 10 * exit)
    assert stages.calls == names[:exit], "deeper stages must not run"
    assert decision.label == int(np.argmax(odds[exit - 1]))


def make_table(shift: float) -> ExitTable:
    before = np.random.default_rng(0).uniform(0.3, 0.9, (200, 3))
    return ExitTable(macs=(10, 20, 30), float_confidence=before, confidence=before - shift)


def test_refitted_thresholds_keep_the_exits_of_the_float_model() -> None:
    table = make_table(shift=0.1)
    wanted = exits_taken(table.float_confidence, np.array([0.7, 0.7, 0.0]))
    assert np.array_equal(exits_taken(table.confidence, table.refitted(0.7)), wanted)
    unfitted = exits_taken(table.confidence, np.array([0.7, 0.7, 0.0]))
    assert not np.array_equal(unfitted, wanted), "without refitting more samples go deep"


@pytest.mark.parametrize("budget", [10, 13.5, 22, 30])
def test_budget_keeps_the_mean_macs_and_uses_them(budget: float) -> None:
    table = make_table(shift=0.05)
    used = table.mean_macs(table.for_budget(budget))
    assert used <= budget
    assert used > min(budget, table.mean_macs(1.0)) - 0.2


def test_budget_below_the_first_exit_is_refused() -> None:
    with pytest.raises(UsageError, match="first exit"):
        make_table(shift=0.0).for_budget(9)


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([1000.0, 0.0])).tolist() == [1.0, 0.0]
