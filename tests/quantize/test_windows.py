"""Which calibration windows a run and its learning stages see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobileicsa.calibrate.text import interleaved
from mobileicsa.quantize.distill import held_out, used
from mobileicsa.quantize.recipe import Learning, Recipe, from_text


@given(count=st.integers(1, 400), steps=st.integers(1, 300), batch=st.integers(1, 8))
def test_a_stage_sees_no_held_out_window_and_no_more_than_its_steps_can(count: int, steps: int, batch: int) -> None:
    windows = torch.arange(count)[:, None]
    kept = used(windows, Learning(steps=steps, batch=batch))
    held = held_out(count)
    assert held_out(len(kept)) == held
    assert torch.equal(kept[-held:], windows[-held:])
    assert torch.equal(kept[:-held], windows[: len(kept) - held])
    assert len(kept) - held == min(count - held, max(steps * batch, 7 * held))


def test_two_sources_lie_evenly_in_every_part() -> None:
    mixed = interleaved(torch.zeros(70, 3, dtype=torch.int64), torch.ones(30, 3, dtype=torch.int64))
    assert mixed.shape == (100, 3)
    for part in torch.split(mixed[:, 0], 10):
        assert int(part.sum()) == 3


@pytest.mark.parametrize(("written", "wanted"), [(0.0, 320), (0.3, 224), (0.999, 1)])
def test_the_rest_of_the_windows_is_the_users_text(written: float, wanted: int) -> None:
    fields = {"learning_samples": 320, "written": written}
    recipe = Recipe(name="a", calibration=fields, learn=[Learning()])  # type: ignore[arg-type]
    assert from_text(recipe) == wanted
