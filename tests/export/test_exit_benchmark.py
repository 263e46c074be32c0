"""The early-exit benchmark: its model's training, its measurements and its figure, all tiny."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_exits import SAMPLES, make_inputs, make_model, missing, write_folder
from torch.nn.functional import pad

from benchmarks.early_exits import run, train
from benchmarks.early_exits.figure import draw
from benchmarks.early_exits.measure import Answers, joined
from benchmarks.early_exits.start import factors, mimic_trained, waves
from benchmarks.early_exits.training import SHIFT, Settings, augmented
from benchmarks.early_exits.training import train as train_model
from mobileicsa.artifact.exits import THRESHOLDS
from mobileicsa.cli.screen import Screen
from mobileicsa.core.errors import UsageError
from mobileicsa.io.json_file import write_json
from mobileicsa.methods.reefl.models import seeded
from mobileicsa.methods.tasks import Examples
from mobileicsa.models.early_exit_vit import ExitVit
from mobileicsa.models.exit_folder import read_exits, read_model
from mobileicsa.quantize.steps import Quiet

TINY = Settings(steps=100, dim=16, blocks=2, heads=2, exits=(1, 2), patch=4)


def colours(count: int) -> Examples:
    """Noise (count, 3, 8, 8) around one of three colours, which is the class."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Examples(inputs=noise + 3 * torch.eye(3)[labels][:, :, None, None], labels=labels)


def test_an_augmented_image_is_a_shifted_one_mirrored_or_not() -> None:
    images = torch.arange(6 * 2 * 8 * 8, dtype=torch.float32).view(6, 2, 8, 8)
    found = augmented(images, torch.Generator().manual_seed(1))
    assert found.shape == images.shape
    places = set()
    for image, given in zip(images, found, strict=True):
        padded = {flip: pad(image.flip(-1) if flip else image, (SHIFT,) * 4, mode="reflect") for flip in (False, True)}
        matches = [
            (flip, down, right)
            for flip, whole in padded.items()
            for down in range(2 * SHIFT + 1)
            for right in range(2 * SHIFT + 1)
            if torch.equal(whole[:, down : down + 8, right : right + 8], given)
        ]
        assert matches
        places.add(matches[0])
    assert len(places) > 1


def test_a_place_is_most_like_itself_and_the_next_ones() -> None:
    likeness = waves(5, 6, 16) @ waves(5, 6, 16).T
    middle = likeness[2 * 6 + 3].view(5, 6)
    assert int(middle.argmax()) == 2 * 6 + 3
    assert float(middle[2, 4]) == pytest.approx(float(middle[2, 2])) == pytest.approx(float(middle[1, 3]))
    assert float(middle[2, 4]) > float(middle[2, 5])
    assert float(middle[1, 3]) > float(middle[0, 3])


def test_factors_of_full_rank_multiply_to_what_is_wanted_and_of_less_to_the_nearest() -> None:
    with seeded(0):
        exact, nearest = (torch.mm(*factors(0.0, -0.4, 8, rank)) for rank in (8, 4))
        noisy = torch.mm(*factors(0.7, 0.7, 256, 256))
    assert torch.allclose(exact, -0.4 * torch.eye(8), atol=1e-6)
    assert float((nearest - exact).square().sum()) == pytest.approx(4 * 0.4**2, rel=1e-4)
    assert float(noisy.diagonal().mean()) == pytest.approx(0.7, abs=0.02)
    assert float((noisy - 0.7 * torch.eye(256)).std() * 256**0.5) == pytest.approx(0.7, abs=0.02)


def test_attention_starts_by_looking_near_by() -> None:
    spec = Settings().spec(Examples(inputs=torch.zeros(1, 3, 32, 32), labels=torch.zeros(1)), 10)
    far = []
    for mimics in (False, True):
        with seeded(0):
            model = ExitVit(spec)
            if mimics:
                mimic_trained(model)
        attention = model.blocks[0].attn
        with torch.no_grad():
            rows = model.blocks[0].norm1(model.embed(torch.zeros(1, 3, 32, 32)))[0, 1:]
            q, k = (
                part(rows).view(64, spec.heads, spec.head_dim).transpose(0, 1) for part in (attention.q, attention.k)
            )
            weights = (q @ k.transpose(1, 2) * spec.head_dim**-0.5).softmax(-1).mean(0)
        places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
        far.append(float((weights * torch.cdist(places, places)).sum(-1).mean()))
    untrained, mimicking = far
    assert mimicking < 0.9 * untrained


def test_all_exits_learn_and_a_seed_repeats() -> None:
    examples, losses = colours(96), []
    spec = TINY.spec(examples, 3)
    model = train_model(spec, examples, TINY, lambda step, loss: losses.append(loss))
    again = train_model(spec, examples, TINY)
    assert len(losses) == TINY.steps
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with torch.no_grad():
        for logits in model(examples.inputs):
            assert float((logits.argmax(-1) == examples.labels).float().mean()) > 0.9


def test_what_is_kept_back_is_not_learned_from() -> None:
    examples = Examples(inputs=torch.arange(50.0)[:, None], labels=torch.arange(50))
    learned, kept = train.kept_back(examples, seed=3)
    assert len(kept) == 5
    assert sorted([*learned.labels.tolist(), *kept.labels.tolist()]) == list(range(50))
    assert run.evenly(examples, 3).labels.tolist() == [0, 24, 49]


def test_a_trained_folder_is_an_early_exit_model(data_dir: Path, tmp_path: Path) -> None:
    settings = Settings(steps=2, dim=16, blocks=2, heads=2, exits=(1, 2), patch=8)
    screen = Screen(json=True, debug=False)
    found = train.make_model(tmp_path, data_dir, settings, screen, per_class=10)
    model = read_model(tmp_path / train.MODEL)
    assert [row["accuracy"] for row in read_exits(tmp_path / train.MODEL, model.spec)] == found
    with pytest.raises(UsageError):
        train.make_model(tmp_path, data_dir, settings, screen, per_class=10)


def test_a_point_has_the_milliseconds_of_the_exits_taken() -> None:
    answers = Answers(confidence=np.array([[0.9, 0.9], [0.3, 0.9]]), classes=np.array([[1, 1], [0, 1]]))
    rows = answers.curve(np.array([1, 1]), (10, 30), [np.full(2, threshold) for threshold in THRESHOLDS])
    bench = {"onnx": {"exits_ms": [1.0, 3.0], "float32": {"exits_ms": [2.0, 4.0]}}}
    found = joined(rows, {"w8a8": {"onnx": {"curve": rows}}}, {"w8a8": bench})["onnx"]
    at_half = THRESHOLDS.index(0.5)
    assert answers.by_exit(np.array([1, 1])) == [0.5, 1.0]
    assert found["w8a8"][at_half] == {
        "threshold": 0.5, "accuracy": 1.0, "mean_macs": 20.0, "taken": [0.5, 0.5], "mean_ms": 2.0
    }  # fmt: skip
    assert found["float32"][at_half]["mean_ms"] == 3.0
    assert found["float32"][0]["accuracy"] == 0.5


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    """Of the tiny model with one scheme, whose labels are the float model's."""
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'mobileicsa[executorch]'")
    if (reason := missing("host-cpu")) is not None:
        pytest.skip(reason)
    write_folder(tmp_path / train.MODEL)
    write_json(tmp_path / train.MODEL / train.RECORD, {"seed": 0})
    inputs = make_inputs()
    examples = Examples(inputs=inputs, labels=make_model()(inputs)[-1].argmax(-1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SCHEMES", ("w8a8",))
        return run.measure(tmp_path, examples, examples, Quiet(), repeat=1)


@pytest.mark.slow
def test_every_kind_is_measured_on_every_runtime(result: dict[str, Any]) -> None:
    assert set(result["curves"]) == set(result["latency"]["w8a8"]) == {"onnx", "executorch"}
    assert result["accuracy_by_exit"]["float32"][-1] == 1.0
    for name, kinds in result["curves"].items():
        assert set(kinds) == {"float32", "w8a8"}
        assert kinds["float32"][-1]["accuracy"] == 1.0
        assert kinds["w8a8"][-1]["accuracy"] == result["accuracy_by_exit"]["w8a8"][name][-1] >= 1 - 2 / SAMPLES
        assert kinds["w8a8"][0]["mean_ms"] == result["latency"]["w8a8"][name]["exits_ms"][0]
        assert result["same_classes_as_float32"]["w8a8"][name] > 0.8


def figure_input(*, w8a8_turns: float) -> dict[str, Any]:
    """Two exits on two runtimes; W8A8's turns, its own float32's too, took `w8a8_turns` times as long as W4A8's."""

    def points(last_ms: float) -> list[dict[str, float]]:
        return [{"accuracy": 0.3 + 0.1 * e, "mean_macs": 1e6 * e, "mean_ms": last_ms * e / 2} for e in (1, 2)]

    def timed(last_ms: float) -> dict[str, Any]:
        return {name: {"float32": {"exits_ms": [last_ms / 2, last_ms]}} for name in ("onnx", "executorch")}

    kinds = {"float32": points(2.0 * w8a8_turns), "w8a8": points(1.5 * w8a8_turns), "w4a8": points(1.0)}
    return {
        "exits": [{"macs": 1e6}, {"macs": 2e6}],
        "accuracy_by_exit": {"float32": [0.4, 0.5]},
        "test_images": 2000,
        "latency": {"w8a8": timed(2.0 * w8a8_turns), "w4a8": timed(2.0)},
        "curves": {"onnx": kinds, "executorch": kinds},
    }


def test_the_figure_names_kinds_runtimes_and_units() -> None:
    shown = draw(figure_input(w8a8_turns=1.0))
    for words in ("float32", "always exit", "W8A8", "ONNX Runtime", "ExecuTorch", "millions", "mean time", "2,000"):
        assert words in shown, words
    assert re.search(r"<!-- 4\d(\.\d)?% -->", shown), "accuracy in percent"


def test_load_that_changed_between_two_schemes_is_not_in_the_figure() -> None:
    assert draw(figure_input(w8a8_turns=1.0)) == draw(figure_input(w8a8_turns=4.0))
