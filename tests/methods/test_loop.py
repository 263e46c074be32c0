"""The training loop: it learns, clips, schedules, repeats, and stops where training diverges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mobileicsa.methods.loop import Diverged, MovingMean, batches, cosine, fit


def train(lr: float, steps: int = 40, **options: float) -> tuple[Tensor, list[float]]:
    weight = torch.full((3,), 5.0, requires_grad=True)
    losses = fit([weight], torch.optim.SGD([weight], lr=lr), range(steps), lambda _: weight.square().sum(), **options)
    return weight.detach(), losses


def test_the_loss_falls() -> None:
    _, losses = train(0.1)
    assert losses[-1] < 1e-3 * losses[0]


def test_a_value_clip_bounds_each_step() -> None:
    weight, _ = train(0.1, steps=1, clip_value=1.0)
    assert weight.tolist() == pytest.approx([4.9] * 3)


def test_training_that_diverges_stops_with_a_hint() -> None:
    with pytest.raises(Diverged) as raised:
        train(50.0)
    assert "learning rate" in str(raised.value)


def test_the_rate_follows_its_schedule() -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    seen: list[float] = []
    fit(
        [weight],
        optimizer,
        range(5),
        lambda _: 0 * weight.sum(),
        rate=lambda step: cosine(step, 5, 1.0, 0.1),
        after=lambda *_: seen.append(optimizer.param_groups[0]["lr"]),
    )
    assert seen == pytest.approx([1.0, 0.868, 0.55, 0.232, 0.1], abs=1e-3)


def test_batches_repeat_for_a_seed_and_hold_all_once() -> None:
    first, again = (list(batches(10, 4, 3, epochs=2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.cat(first[:3]).sort().values.tolist() == list(range(10))


def test_the_moving_mean_starts_at_its_first_value() -> None:
    mean = MovingMean(0.8)
    for value in (2.0, 1.0):
        mean.add(value)
    assert mean.value == pytest.approx(1.8)
