"""Learning on another device: everything is moved there and back, and gives what the CPU gives."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pretended_device import pretending
from tiny_artifact import write_checkpoint
from tiny_learning import Memory, quantized, tiny_weights, windows
from torch.utils._python_dispatch import TorchDispatchMode

from mobileicsa.calibrate.generated import (
    GPU_CACHE_BYTES,
    GPU_GROUP,
    GROUP,
    generate_windows,
    group_size,
    passes,
)
from mobileicsa.cli.failure import failure_of
from mobileicsa.core.scheme import find_scheme
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.models import product
from mobileicsa.models.load import load_decoder
from mobileicsa.quantize import (
    distill,
    learn_math,
    learn_model,
    learned,
    pipeline,
    prefix,
    quality,
    reobserve,
    sensitivity,
    student_layers,
)
from mobileicsa.quantize.distill import Descent, float_targets, loss_of, stacked
from mobileicsa.quantize.pipeline import Result
from mobileicsa.quantize.recipe import Learning, Recipe
from mobileicsa.quantize.student import Base, Student

RATES = {"lr_ranges": 0.003, "lr_scales": 0.002, "lr_gains": 0.002, "lr_prefix": 0.003}
BLOCKS = Learning(scope="block", weights="latent", steps=2, batch=4, lr_weights=0.01, **RATES)
MODEL = Learning(weights="scale", steps=4, **RATES)
HIDDEN = Learning(weights="clip", loss="hidden", steps=3, lr_equivalent=0.01, save_memory=True, **RATES)


@pytest.fixture(autouse=True)
def plain_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(student_layers, "product_dtype", lambda device: torch.float32)
    monkeypatch.setattr(product, "prefers_onednn", lambda: False)
    monkeypatch.setattr(prefix, "CANDIDATES", 2)
    monkeypatch.setattr(prefix, "ROUNDS", ((2, 1, 2), (1, 2, 2)))
    for module in (learn_math, student_layers):  # both as if on a device
        monkeypatch.setattr(module, "immediate", lambda device: False)


LEARNING = (distill, learned)
BEFORE_AND_AFTER = (pipeline, prefix, quality, reobserve)


def on_device(monkeypatch: pytest.MonkeyPatch, device: torch.device, *modules: ModuleType) -> None:
    for module in modules:
        monkeypatch.setattr(module, "compute_device", lambda: device)


def run(folder: Path, *stages: Learning, store: Memory | None = None, prefix_tokens: int = 1) -> Result:
    return quantized(*tiny_weights(folder), *stages, store=store, prefix_tokens=prefix_tokens)


def same(a: Result, b: Result) -> bool:
    assert a.tensors.keys() == b.tensors.keys()
    return a.plan == b.plan and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.mark.parametrize(("stages", "prefix_tokens"), [((BLOCKS, MODEL), 1), ((HIDDEN,), 0)])
def test_a_device_gives_what_the_cpu_gives(
    stages: tuple[Learning, ...], prefix_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run(tmp_path / "a", *stages, prefix_tokens=prefix_tokens)
    with pretending() as device:
        on_device(monkeypatch, device, *BEFORE_AND_AFTER, *LEARNING)
        there = run(tmp_path / "b", *stages, prefix_tokens=prefix_tokens)
    assert [row["device"] for row in there.report["learning"]] == ["lazy"] * len(stages)
    assert same(here, there)


def test_a_run_goes_on_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn_model, "INTERVAL", 2)
    whole, store = run(tmp_path / "a", MODEL), Memory(stop_at="learn-1", stop_after=1)
    with pretending() as device:
        on_device(monkeypatch, device, *LEARNING)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", MODEL, store=store)
        assert same(whole, run(tmp_path / "b", MODEL, store=store))


def test_a_device_finds_the_sensitivity_that_the_cpu_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, weights = tiny_weights(tmp_path)
    given = (spec, weights, (1, 5), windows(4), find_scheme("w4a8"), Recipe(name="tiny", weights="gptq"), 0)
    here = sensitivity.measure(*given, lambda total: lambda: None)
    with pretending() as device:
        on_device(monkeypatch, device, sensitivity)
        assert sensitivity.measure(*given, lambda total: lambda: None) == here


def test_a_device_writes_the_text_that_the_cpu_writes(tmp_path: Path) -> None:
    decoder = load_decoder(open_checkpoint(str(write_checkpoint(tmp_path))))
    here = generate_windows(decoder, 3, 6, 7, lambda: None)
    with pretending() as device:
        there = generate_windows(decoder.to(device), 3, 6, 7, lambda: None)
    assert there.device.type == "cpu"
    assert torch.equal(here, there)


def test_texts_written_side_by_side_fit_a_small_gpu(tmp_path: Path) -> None:
    spec, _ = tiny_weights(tmp_path)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (group_size(spec, 256, cpu), group_size(spec, 256, gpu)) == (GROUP, GPU_GROUP)
    row = 2 * 4 * len(spec.layers) * spec.num_kv_heads * spec.head_dim
    length = GPU_CACHE_BYTES // (10 * row)
    assert group_size(spec, length, gpu) == 10
    assert passes(25, length, spec, gpu) == 3 * length


class NoLooking(TorchDispatchMode):
    """Fails where a value is looked at, or a shape depends on one: a recorded step can do neither."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select")), name
        if name.startswith("aten.index."):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "index by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("learning", [MODEL, BLOCKS, HIDDEN.model_copy(update={"save_memory": False})])
def test_a_step_can_be_recorded(learning: Learning, tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    made = quantized(spec, weights)
    real = {name: tensor.float() for name, tensor in made.tensors.items() if name in made.plan.weights}
    base = Base(made.plan, made.tensors, real)
    student, ids = Student(base, learning), windows(4)
    targets = stacked(float_targets(base, weights, ids, learning.loss, lambda: None))
    loss_of(student, ids, *targets).backward()  # tables of positions are made once
    with NoLooking():
        loss_of(student, ids, *targets).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a GPU's kernels, and there is no GPU")
def test_replayed_steps_give_what_sent_ones_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = run(tmp_path / "a", BLOCKS, MODEL)
    monkeypatch.setattr(Descent, "replays", property(lambda self: False, lambda self, value: None), raising=False)
    sent = run(tmp_path / "b", BLOCKS, MODEL)
    for ours, theirs in zip(recorded.report["quality"], sent.report["quality"], strict=True):
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=0.02)
    assert recorded.plan.prefix_ids == sent.plan.prefix_ids


def test_a_device_without_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(learned, "learn_model", full)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        run(tmp_path, MODEL)
    failure = failure_of(raised.value)
    assert (failure.kind, failure.exit_code) == ("EnvironmentFault", 4)
    assert "CUDA_VISIBLE_DEVICES=" in str(failure.hint)
