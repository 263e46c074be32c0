"""A training run of five steps: what it writes is a checkpoint like any other; stopping it changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_data
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.small_model import training
from benchmarks.small_model.record import RECORD, read_record
from benchmarks.small_model.settings import Settings
from benchmarks.small_model.train import CHECKPOINT, main, make_model
from benchmarks.small_model.training import LAST_RATE, LEARNING_RATE, WARM_UP, rate_at
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.cli.screen import Screen
from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.models.load import load_decoder, read_spec

TINY = Settings(minutes=None, steps=5, hidden=128, layers=1, vocab=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return run(tmp_path_factory.mktemp("trained") / "model", data)


def run(output: Path, data: Path, settings: Settings = TINY) -> Path:
    make_model(output, data, settings, Screen(json=True, debug=False))
    return output


@torch.no_grad()
def test_our_decoder_gives_the_logits_of_transformers(trained: Path) -> None:
    checkpoint = open_checkpoint(str(trained))
    ids = torch.tensor([[0, *Tokenizer(trained).encode("the old ship sails far from home")]])
    expected = AutoModelForCausalLM.from_pretrained(trained)(ids).logits
    logits = load_decoder(checkpoint)(ids)[0]
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-4
    spec = read_spec(checkpoint)
    assert (spec.bos_id, spec.eos_ids, spec.tied_head, spec.num_kv_heads) == (0, (1,), True, 1)
    assert Tokenizer(trained).check_special(spec, "trained") == []


def test_both_tokenizers_agree_and_transformers_puts_bos_first(trained: Path) -> None:
    text = "a pale moon\n = = Part = ="
    assert AutoTokenizer.from_pretrained(trained).encode(text) == [0, *Tokenizer(trained).encode(text)]


def test_weights_are_float32_on_no_grid(trained: Path) -> None:
    weight = load_file(trained / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.float32
    assert all(len(row.unique()) > 120 for row in weight)


def test_the_record_tells_what_was_learned(trained: Path) -> None:
    record = read_record(str(trained))
    assert record is not None
    assert (record["steps"], record["limit"], record["tokens"]["seen"]) == (5, {"steps": 5}, 5 * 8 * 255)
    first = math.log(TINY.vocab)
    assert record["best"]["validation_loss"] < first
    assert record["validation_perplexity"] == pytest.approx(math.exp(record["best"]["validation_loss"]), rel=0.02)
    assert record["test"].keys() == {"wikitext2", "shakespeare"}
    assert all(1 < one["perplexity"] < TINY.vocab for one in record["test"].values())
    assert len(record["text"]) == 6
    assert sorted(path.name for path in trained.parent.iterdir()) == ["model"]
    assert not (trained / CHECKPOINT).exists()
    assert read_record("smollm2-135m") is None


def test_an_interrupted_run_ends_with_the_same_weights(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECK_STEPS", 2)
    taught: list[int] = []

    def stop_in_step_4(model: Any, windows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if model.training:
            taught.append(len(taught))
            if len(taught) == 4:
                raise KeyboardInterrupt
        return whole(model, windows, dtype)

    whole = training.loss_of
    monkeypatch.setattr(training, "loss_of", stop_in_step_4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "model", data)
    assert not (tmp_path / "model" / RECORD).exists()
    run(tmp_path / "model", data)
    assert len(taught) == 4 + 3
    stopped, straight = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", trained))
    assert stopped.keys() == straight.keys()
    assert all(torch.equal(stopped[name], weight) for name, weight in straight.items())


def test_a_run_begun_with_other_settings_does_not_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_of", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, data)
    with pytest.raises(UsageError, match="was begun with seed 0, not 1"):
        run(tmp_path, data, Settings(minutes=None, steps=5, hidden=128, layers=1, vocab=300, seed=1))
    kept = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(kept[: len(kept) // 2])
    with pytest.raises(InputError, match=r"checkpoint\.pt: cannot be read"):
        run(tmp_path, data)


def test_the_best_step_is_kept_not_the_last(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECK_STEPS", 1)
    monkeypatch.setattr(training, "rate_at", lambda share: 1e-3 if share < 0.5 else 1.0)
    record = read_record(str(run(tmp_path / "model", data)))
    assert record is not None
    assert record["best"]["step"] == 3 < record["history"][-1]["step"] == 5
    assert record["validation_perplexity"] == pytest.approx(math.exp(record["best"]["validation_loss"]), rel=0.02)


def test_finished_and_foreign_folders_are_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(UsageError, match="holds a finished model"):
        run(trained, data)
    assert before == {path.name: path.read_bytes() for path in trained.iterdir()}
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        run(tmp_path, data)


def test_a_run_by_the_clock_ends_after_its_time(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--minutes", "0.001", "--hidden", "128", "--layers", "1", "--vocab", "300", "--data", str(data)]
    main(["--output", str(tmp_path / "model"), *arguments])
    record = read_record(str(tmp_path / "model"))
    assert record is not None
    assert record["steps"] >= 1
    assert record["seconds"] >= 0.06
    assert "validation perplexity" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "model"), *arguments])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"minutes": 0.0}, "--minutes 0: must be above 0"),
        ({"minutes": None, "steps": 0}, "--steps 0: must be at least 1"),
        ({"hidden": 192}, "--hidden 192: must be a multiple of 128"),
        ({"vocab": 256}, "--vocab 256: must be at least 260"),
    ],
)
def test_settings_that_make_no_model_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**wrong)


def test_the_rate_rises_then_falls_to_its_last_value() -> None:
    rates = [rate_at(share) for share in (0.0, WARM_UP / 2, WARM_UP, 0.5, 1.0, 1.2)]
    assert rates[:3] == pytest.approx([0.0, LEARNING_RATE / 2, LEARNING_RATE])
    assert LEARNING_RATE > rates[3] > rates[4]
    assert rates[4:] == pytest.approx([LEARNING_RATE * LAST_RATE] * 2)
