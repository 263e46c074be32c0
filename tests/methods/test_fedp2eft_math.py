"""FedP2EFT's arithmetic: generator, prior, budget, statistics, with values known beforehand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobileicsa.calibrate.inputs import InputMoments
from mobileicsa.core.errors import InputError
from mobileicsa.methods.fedp2eft.budget import keep_largest, parameters, uniform_mask
from mobileicsa.methods.fedp2eft.generator import Generator, clamp_through, features, follow, from_state, standardise
from mobileicsa.methods.fedp2eft.objective import prior, significance, sparsity
from mobileicsa.methods.lora import Adapter, Slot, initial_a

SEED = torch.Generator().manual_seed(0)


def test_a_clamp_lets_the_gradient_through() -> None:
    x = torch.tensor([-3.0, 0.5, 5000.0], requires_grad=True)
    y = clamp_through(x)
    y.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(y.detach(), torch.tensor([1e-4, 0.5, 1000.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("start", [1e-4, 1.0])
def test_a_new_generator_gives_its_start_for_any_client(start: float) -> None:
    generator = Generator(6, 3, 4, start, SEED)
    for x in (torch.zeros(6), torch.tensor([5.0, -5, 1, 2, 3, 4])):
        torch.testing.assert_close(generator(x), torch.full((3, 4), start), atol=1e-6, rtol=1e-2)
    assert from_state(generator.state_dict(), 4)(torch.ones(6)).shape == (3, 4)


def test_a_generator_learns_to_tell_clients_apart() -> None:
    generator, draw = Generator(40, 2, 2, 0.1, SEED), torch.Generator().manual_seed(1)
    clients = [(1 + torch.randn(40, generator=draw) / 100, wanted) for wanted in (torch.zeros(2, 2), torch.ones(2, 2))]
    standardise(generator, [x for x, _ in clients])
    for _ in range(60):
        for x, wanted in clients:
            follow(generator, x, wanted, rate=1e-3, steps=4)
    for x, wanted in clients:
        assert (generator(x) - wanted).abs().max() < 0.2


def test_the_prior_has_known_values() -> None:
    columns, scales = [torch.tensor([[1.0, -2.0], [3.0, 0.0]])], torch.tensor([[2.0, 0.5]])
    assert float(significance(columns, scales)) == 4 / 2 + 2 / 0.5
    assert float(sparsity(scales)) == pytest.approx(250.0)  # log 2 + log 1/2 = 0
    found = prior(columns, scales, 10, significance_weight=3.0, sparsity_weight=0.1)
    assert float(found) == pytest.approx((3 * 6 + 0.1 * 250) / 10)


def test_the_prior_draws_a_used_rank_up_and_an_unused_one_down() -> None:
    scales = torch.tensor([[0.1, 0.1]], requires_grad=True)
    columns = [torch.tensor([[1.0, 0.0]])]
    prior(columns, scales, 1, significance_weight=1.0, sparsity_weight=0.01).backward()  # type: ignore[no-untyped-call]
    assert scales.grad is not None
    assert scales.grad[0, 0] < 0 < scales.grad[0, 1]


def test_the_largest_are_kept_over_all_modules() -> None:
    scores = torch.tensor([[5.0, 1.0], [4.0, 3.0], [0.1, 0.2]])
    # Six parameters: 5 and 4 fit, 3 does not with them, 1 does.
    mask = keep_largest(scores, torch.tensor([1, 4, 10]), 6)
    assert mask.tolist() == [[True, True], [True, False], [False, False]]


def test_equal_scores_are_shared_out_evenly() -> None:
    costs = torch.tensor([3, 3, 3])
    assert torch.equal(keep_largest(torch.full((3, 8), 0.1), costs, 2 * 9), uniform_mask(3, 8, 2))


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(0, 60),
    st.integers(1, 5),
)
def test_a_budget_is_never_exceeded_nor_left_unused(scores: list[list[float]], budget: int, cost: int) -> None:
    matrix, costs = torch.tensor(scores), torch.arange(len(scores)) + cost
    mask = keep_largest(matrix, costs, budget)
    used = parameters(mask, costs)
    assert used <= budget
    left = costs[(~mask).any(dim=1)]
    assert not len(left) or int(left.min()) > budget - used


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), min_size=1, max_size=5))
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    merged = InputMoments()
    for part in parts:
        merged.update(torch.tensor(part))
    whole = torch.tensor([value for part in parts for value in part], dtype=torch.float64)
    assert merged.count == len(whole)
    assert merged.mean == pytest.approx(float(whole.mean()), abs=1e-6)
    assert merged.deviation() == pytest.approx(float(whole.std(correction=0)), abs=1e-5)


def test_moments_keep_small_deviations_beside_a_large_mean() -> None:
    moments = InputMoments()
    for value in (-1.0, 1.0):
        moments.update(torch.full((1000,), 1e7 + value, dtype=torch.float64))
    assert moments.deviation() == pytest.approx(1.0)
    torch.testing.assert_close(features([moments]), torch.asinh(torch.tensor([1e7, 1.000005])))


def test_moments_refuse_what_is_not_finite() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        InputMoments().update(torch.tensor([1.0, float("inf")]))


def test_a_scaled_adapter_folds_into_plain_lora() -> None:
    linear = torch.nn.Linear(6, 4, bias=False)
    slot, x = Slot(linear), torch.randn(3, 6, generator=SEED)
    before = slot(x)
    slot.adapter = Adapter(initial_a(2, 6, SEED), torch.randn(4, 2, generator=SEED), torch.tensor([0.5, 3.0]), 2.0)
    torch.testing.assert_close(slot(x), before + x @ slot.adapter.update().product().T)
    slot.adapter = None
    assert torch.equal(slot(x), before)
