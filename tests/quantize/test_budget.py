"""The choice of what is promoted: within the budget, never fewer for more of it, the best for a byte first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileicsa.core.errors import UsageError
from mobileicsa.quantize.budget import Candidate, Limits, by_worth, choose, increase_of, loss_of

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=st.text("abc", min_size=1, max_size=6),
        saving=st.floats(-0.5, 2.0, width=32),
        cost=st.integers(1, 10_000),
    ),
    max_size=30,
    unique_by=lambda candidate: candidate.name,
)
BYTES, LOSSES = st.integers(0, 40_000), st.floats(0.0, 4.0)


def test_the_most_saved_for_a_byte_comes_first_and_equals_by_name() -> None:
    dear = Candidate(name="a", saving=3.0, cost=30)
    cheap = Candidate(name="c", saving=2.0, cost=10)
    twin = Candidate(name="b", saving=4.0, cost=20)
    useless = Candidate(name="d", saving=0.0, cost=1)
    assert by_worth([dear, cheap, twin, useless]) == [twin, cheap, dear]
    assert choose([dear, cheap, twin], loss=9.0, spare_bytes=30) == [twin, cheap]
    assert choose([dear, cheap, twin], loss=9.0, loss_target=5.0) == [twin]


@given(CANDIDATES, BYTES, st.none() | LOSSES)
def test_the_budget_is_never_exceeded(candidates: list[Candidate], spare: int, target: float | None) -> None:
    chosen = choose(candidates, loss=4.0, spare_bytes=spare, loss_target=target)
    assert sum(candidate.cost for candidate in chosen) <= spare
    assert all(candidate.saving > 0 for candidate in chosen)


@given(CANDIDATES, BYTES, BYTES, st.none() | LOSSES)
def test_a_larger_budget_only_adds(candidates: list[Candidate], one: int, other: int, target: float | None) -> None:
    less, more = (choose(candidates, loss=4.0, spare_bytes=s, loss_target=target) for s in sorted((one, other)))
    assert less == more[: len(less)]


@given(CANDIDATES, LOSSES, LOSSES, LOSSES)
def test_a_lower_target_only_adds_and_is_reached_or_all_is_promoted(
    candidates: list[Candidate], loss: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    more, less = (choose(candidates, loss=loss, loss_target=target) for target in (low, high))
    assert less == more[: len(less)]
    left = loss
    for candidate in more:
        assert left > low  # nothing is promoted beyond the need
        left -= candidate.saving
    assert left <= low or more == by_worth(candidates)


def test_without_any_limit_all_that_saves_is_promoted() -> None:
    candidates = [Candidate(name=str(i), saving=float(i), cost=1) for i in range(4)]
    assert choose(candidates, loss=0.0) == by_worth(candidates)


@given(st.floats(0.0, 3.0))
def test_loss_and_increase_are_inverse(loss: float) -> None:
    assert loss_of(increase_of(loss)) == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize(
    ("given_limits", "named"),
    [
        ({"budget_bytes": 0}, "--budget-bytes 0"),
        ({"max_ppl_increase": 0.0}, "--max-ppl-increase 0"),
        ({"max_ppl_increase": float("nan")}, "--max-ppl-increase nan"),
        ({"max_ppl_increase": float("inf")}, "--max-ppl-increase inf"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(given_limits: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Limits(**given_limits)  # type: ignore[arg-type]
