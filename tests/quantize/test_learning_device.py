"""Learning on another device: everything is moved there and back, and gives what the CPU gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretended_device import pretending
from tiny_learning import Memory, quantized, tiny_weights

from mobileicsa.cli.failure import failure_of
from mobileicsa.quantize import learn_model, learned, student_layers
from mobileicsa.quantize.pipeline import Result
from mobileicsa.quantize.recipe import Learning

RATES = {"lr_ranges": 0.003, "lr_scales": 0.002, "lr_gains": 0.002, "lr_prefix": 0.003}
BLOCKS = Learning(scope="block", weights="latent", steps=2, batch=4, lr_weights=0.01, **RATES)
MODEL = Learning(weights="scale", steps=4, **RATES)
HIDDEN = Learning(weights="clip", loss="hidden", steps=3, lr_equivalent=0.01, save_memory=True, **RATES)


@pytest.fixture(autouse=True)
def plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(student_layers, "product_dtype", lambda device: torch.float32)


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
        monkeypatch.setattr(learned, "learning_device", lambda: device)
        there = run(tmp_path / "b", *stages, prefix_tokens=prefix_tokens)
    assert [row["device"] for row in there.report["learning"]] == ["lazy"] * len(stages)
    assert same(here, there)


def test_a_run_goes_on_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn_model, "INTERVAL", 2)
    whole, store = run(tmp_path / "a", MODEL), Memory(stop_at="learn-1", stop_after=1)
    with pretending() as device:
        monkeypatch.setattr(learned, "learning_device", lambda: device)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", MODEL, store=store)
        assert same(whole, run(tmp_path / "b", MODEL, store=store))


def test_a_device_without_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(learned, "learn_model", full)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        run(tmp_path, MODEL)
    failure = failure_of(raised.value)
    assert (failure.kind, failure.exit_code) == ("EnvironmentFault", 4)
    assert "CUDA_VISIBLE_DEVICES=" in str(failure.hint)
