"""RELIABILITY 62 and 63: bad updates are dropped and counted, the round goes on, the model stays finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mobileicsa.methods.federated import Server, simulate
from mobileicsa.methods.updates import Guard, Reason, Update

STATE = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}
CLIENTS = dict.fromkeys(("one", "two", "three", "bad"), 10)


def good(client: str, round: int = 0, step: float = 0.1) -> Update:
    return Update(client=client, round=round, examples=10, arrays={k: v + np.float32(step) for k, v in STATE.items()})


def with_array(update: Update, key: str, value: Any) -> Update:
    return replace(update, arrays={**update.arrays, key: value})


BAD = good("bad")
FAULTS = {
    Reason.NOT_FINITE: with_array(BAD, "b", np.array([1, np.nan, 1, 1], np.float32)),
    Reason.HUGE_NORM: with_array(BAD, "a", np.full((2, 3), 1e6, np.float32)),
    Reason.UNKNOWN_KEY: with_array(BAD, "c", np.ones(2, np.float32)),
    Reason.WRONG_DTYPE: with_array(BAD, "a", np.ones((2, 3), np.float64)),
    Reason.WRONG_SHAPE: with_array(BAD, "a", np.ones((3, 2), np.float32)),
    Reason.EXAMPLE_COUNT: replace(BAD, examples=10**12),
    Reason.WRONG_ROUND: replace(BAD, round=5),
    Reason.UNKNOWN_CLIENT: replace(BAD, client="stranger"),
    Reason.NO_KEYS: replace(BAD, arrays={}),
    Reason.SENT_TWICE: good("one"),
}


@pytest.mark.parametrize("reason", FAULTS, ids=str)
def test_a_bad_update_is_dropped_with_its_reason_and_the_round_goes_on(
    reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(state=dict(STATE), guard=Guard(examples=CLIENTS))
    report = server.close([good("one"), good("two"), good("three"), FAULTS[reason]])
    assert [rejection.reason for rejection in report.rejected] == [reason]
    assert report.accepted == 3
    assert reason.value in caplog.text
    assert server.counts() == {"accepted": 3, "rejected": 1, "failed_rounds": 0, f"rejected_{reason.value}": 1}
    np.testing.assert_allclose(server.state["a"], STATE["a"] + 0.1, rtol=1e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_no_value_that_is_not_finite_reaches_the_model(value: float) -> None:
    server = Server(state=dict(STATE))
    server.close([with_array(BAD, "a", np.full((2, 3), value, np.float32))])
    assert server.reports[0].failed
    assert all(np.isfinite(array).all() for array in server.state.values())


def test_a_huge_update_alone_in_the_first_round_is_dropped() -> None:
    server = Server(state=dict(STATE))
    server.close([FAULTS[Reason.HUGE_NORM]])
    assert server.state is not None
    np.testing.assert_array_equal(server.state["a"], STATE["a"])


def test_of_two_the_huge_one_is_dropped() -> None:
    server = Server(state=dict(STATE))
    report = server.close([FAULTS[Reason.HUGE_NORM], good("one")])
    assert [rejection.client for rejection in report.rejected] == ["bad"]


def test_an_update_of_a_round_that_is_over_is_dropped() -> None:
    server = Server(state=dict(STATE))
    server.close([good("one"), good("two")])
    report = server.close([good("late", round=0), good("one", round=1)])
    assert [(r.client, r.reason) for r in report.rejected] == [("late", Reason.WRONG_ROUND)]


def test_below_the_quorum_the_model_stays_and_the_round_is_marked() -> None:
    server = Server(state=dict(STATE), quorum=2)
    assert server.close([good("one")]).failed
    np.testing.assert_array_equal(server.state["a"], STATE["a"])
    assert not server.close([good("one", round=1), good("two", round=1)]).failed
    assert server.counts()["failed_rounds"] == 1


def test_rounds_where_clients_drop_out_go_on_with_the_rest() -> None:
    server = Server(state=dict(STATE), quorum=1)

    def fit(client: str, round: int, state: Any) -> Update | None:
        return None if client == "two" or round == 1 else good(client, round)

    simulate(server, ["one", "two", "three"], fit, rounds=3, per_round=3, seed=0)
    assert [(report.accepted, report.failed) for report in server.reports] == [(2, False), (0, True), (2, False)]
