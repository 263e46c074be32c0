"""Windows that stand further on in the context than right behind the prefix."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_learning import Memory, quantized, tiny_weights, windows
from torch import Tensor

from mobileicsa.calibrate import stream
from mobileicsa.calibrate.stream import embed, load_layer, run_content, run_prefix
from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.decoder import Decoder, LayerCache, causal_mask, positions_for, rope_table
from mobileicsa.models.load import FloatWeights, empty_weights
from mobileicsa.models.placed import REACH, PlacedWindows, Positions, reach, spread
from mobileicsa.quantize import distill, student
from mobileicsa.quantize.distill import float_targets
from mobileicsa.quantize.recipe import Calibration, Learning
from mobileicsa.quantize.student import Base, settled

PREFIX = (1, 7)


@pytest.fixture
def model(tmp_path: Path) -> tuple[ModelSpec, FloatWeights]:
    return tiny_weights(tmp_path)


@pytest.mark.parametrize("start", [0, 2])
def test_at_offset_0_they_are_right_behind_the_prefix(start: int, model: tuple[ModelSpec, FloatWeights]) -> None:
    ropes, masks = PlacedWindows(model[0], start, 5).at(torch.zeros(3, dtype=torch.int64))
    wanted, wanted_masks = positions_for(model[0], start, 5)
    for ours, theirs in zip(ropes, wanted, strict=True):
        assert all(torch.equal(a[b, 0], t) for a, t in zip(ours, theirs, strict=True) for b in range(3))
    assert all(torch.equal(masks[window], mask) for window, mask in wanted_masks.items())


def test_tables_and_sliding_masks_are_those_of_the_real_positions(model: tuple[ModelSpec, FloatWeights]) -> None:
    spec = replace(model[0], layers=(LayerSpec(sliding_window=4),) * model[0].num_layers)
    ropes, masks = PlacedWindows(spec, 2, 5).at(torch.tensor([0, 3, 11]))
    for row, offset in enumerate((0, 3, 11)):
        query = torch.arange(2, 7) + offset
        assert torch.equal(ropes[0][0][row, 0], rope_table(spec.ropes[0], query)[0])
        wanted = causal_mask(query, torch.cat((torch.arange(2), query)), 4)
        assert torch.equal(masks[4][row, 0], wanted)
    assert (masks[4][2, 0, :, :2] < 0).all()  # 11 further on, the window has left the prefix behind


def test_a_block_sees_a_window_as_if_the_text_between_were_masked(model: tuple[ModelSpec, FloatWeights]) -> None:
    """Against one long run: prefix, 9 tokens that nobody may look at, the window."""
    spec, weights = model
    torch.manual_seed(0)
    layer, content = load_layer(spec, 0, weights), torch.randn(6, 4, spec.hidden_size)
    behind = embed(spec, weights, PREFIX, torch.zeros(6, 4, dtype=torch.int64))
    _, past = run_prefix(spec, layer, behind)
    offsets = torch.tensor([0, 9, 0, 9, 9, 9])
    ours = torch.cat(list(run_content(spec, layer, content, past, offsets=offsets)))
    for row, offset in enumerate(offsets.tolist()):
        unseen = torch.zeros(1, spec.num_kv_heads, offset, spec.head_dim)
        longer: LayerCache = (torch.cat((past[0], unseen), 2), torch.cat((past[1], unseen), 2))
        ropes, masks = positions_for(spec, 2 + offset, 4)
        mask = masks[None].clone()
        mask[:, 2 : 2 + offset] = -1e9
        wanted, _ = layer(content[row : row + 1], ropes[0], mask, longer)
        torch.testing.assert_close(ours[row : row + 1], wanted, rtol=1e-5, atol=1e-5)


def test_the_float_targets_and_the_student_stand_where_the_windows_do(
    tmp_path: Path, model: tuple[ModelSpec, FloatWeights]
) -> None:
    spec, weights = model
    result = quantized(spec, weights, prefix_tokens=1)
    base = Base(result.plan, result.tensors, {})
    ids, offsets = windows(4), torch.tensor([0, 5, 30, 5])
    targets = float_targets(base, weights, ids, "hidden", lambda: None, offsets=offsets)
    with empty_weights():
        decoder = Decoder(spec, primitive=False)
    weights.fill(decoder, "")
    prefix = result.plan.prefix_ids
    _, past = decoder(torch.tensor([prefix]))
    placed = PlacedWindows(spec, len(prefix), ids.shape[1])
    for row, target in enumerate(targets):
        assert target.offset == int(offsets[row])
        assert target.hidden is not None
        wanted, _ = decoder.hidden(ids[row : row + 1], *placed.at(offsets[row : row + 1]), past)
        torch.testing.assert_close(target.hidden, wanted[0])
    learner = settled(result.plan, result.tensors)
    with torch.no_grad():
        together = learner.hidden(ids, offsets)
        for row in range(4):
            alone = learner.hidden(ids[row : row + 1], offsets[row : row + 1])
            assert _differing(together[row], alone[0]) < 0.01
        near = learner.hidden(ids)
    assert _differing(together[0], near[0]) < 0.01
    assert _differing(together[2], near[2]) > 0.5


def _differing(a: Tensor, b: Tensor) -> float:
    """Share of the numbers that are further apart than sums in another order are; a rounding may fall otherwise."""
    return float(((a - b).abs() > 1e-4 * b.abs().max()).float().mean())


@pytest.mark.parametrize(("share", "every"), [(0.5, 2), (0.25, 4), (1.0, 1)])
def test_a_share_of_the_windows_stands_anywhere_and_the_others_at_the_beginning(share: float, every: int) -> None:
    offsets = spread(64, 100, share, seed=3)
    moved = torch.arange(64) % every == every - 1
    assert (offsets[~moved] == 0).all()
    assert 0 < int(offsets[moved].min()) < 20
    assert 80 < int(offsets.max()) <= 100
    assert torch.equal(offsets, spread(64, 100, share, seed=3))
    assert not torch.equal(offsets, spread(64, 100, share, seed=4))


def test_without_a_share_or_room_every_window_stands_at_the_beginning() -> None:
    assert (spread(64, 100, 0.0, seed=3) == 0).all()
    assert (spread(5, 0, 0.5, seed=0) == 0).all()


WHERE = (stream, distill, student)


def test_with_spread_every_stage_sees_windows_further_on_and_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, weights = tiny_weights(tmp_path)
    seen: dict[str, set[int]] = {}

    class Watched(PlacedWindows):
        def at(self, offsets: Tensor) -> Positions:
            frame = inspect.currentframe()  # inspect.stack() reads every frame's source
            while frame is not None:
                seen.setdefault(frame.f_code.co_name, set()).update(offsets.tolist())
                frame = frame.f_back
            return super().at(offsets)

    for module in WHERE:
        monkeypatch.setattr(module, "PlacedWindows", Watched)
    block = Learning(scope="block", weights="latent", steps=2, batch=4, lr_weights=0.01, lr_ranges=0.003)
    model = Learning(weights="scale", steps=4, lr_ranges=0.003)
    fields = {
        "calibration": Calibration(samples=32, learning_samples=96, length=20, spread=0.5),
        "bias_correction": True,
    }
    whole = quantized(spec, weights, block, model, fields=fields)
    for stage in (
        "quantize_block",
        "round_block",
        "learn_blocks",
        "learn_model",
        "observe_again",
        "look",
        "correct_biases",
    ):
        assert len(seen[stage]) > 3, stage
        assert 0 in seen[stage]
    near = quantized(spec, weights, block, model, fields={**fields, "calibration": Calibration(samples=32, length=20)})
    assert near.plan.edges != whole.plan.edges
    for stop_at in ("stream", "learn-2"):
        store = Memory(stop_at=stop_at, stop_after=1)
        with pytest.raises(KeyboardInterrupt):
            quantized(spec, weights, block, model, fields=fields, store=store)
        again = quantized(spec, weights, block, model, fields=fields, store=store)
        assert again.plan == whole.plan
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_no_window_stands_beyond_the_models_context(model: tuple[ModelSpec, FloatWeights]) -> None:
    spec = model[0]
    assert reach(replace(spec, max_context=100), 2, 30) == 68
    assert reach(replace(spec, max_context=10 * REACH), 2, 30) == REACH - 32
    assert reach(replace(spec, max_context=20), 2, 30) == 0
