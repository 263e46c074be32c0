"""Estimates over seeds and verdicts on them."""

from __future__ import annotations

import math

import pytest

from mobileicsa.core.errors import InputError
from mobileicsa.methods.result import T_95, Estimate, judge_above


def test_the_interval_is_students_t() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.ci is not None
    assert estimate.ci[1] - 2.0 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


def test_quantiles_equal_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    assert pytest.approx([stats.t.ppf(0.975, n) for n in range(1, len(T_95) + 1)], abs=1e-4) == list(T_95)


def test_one_seed_has_no_interval_and_shows_nothing() -> None:
    one = {"m": Estimate.of([0.9])}
    assert one["m"].ci is None
    verdict = judge_above("c", "m", one, {"low": {"m": Estimate.of([0.1])}})
    assert not verdict.holds
    assert "one seed" in verdict.why


def test_a_metric_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(InputError, match="not finite"):
        Estimate.of([0.1, float("nan")])


def test_seeds_are_paired() -> None:
    ours = {"m": Estimate.of([0.1, 0.5, 0.9])}
    theirs = {"m": Estimate.of([0.0, 0.39, 0.8])}
    assert judge_above("c", "m", ours, {"low": theirs}).holds
    assert not judge_above("c", "m", ours, {"low": theirs}, lower=True).holds
    assert judge_above("c", "m", theirs, {"high": ours}, lower=True).holds


def test_one_rival_that_is_not_beaten_ends_the_claim() -> None:
    ours, low, same = ({"m": Estimate.of(values)} for values in ([1.0, 1.1], [0.0, 0.1], [1.1, 1.0]))
    verdict = judge_above("c", "m", ours, {"low": low, "same": same})
    assert not verdict.holds
    assert "against same" in verdict.why
    assert verdict.why.endswith("not shown")
