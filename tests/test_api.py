"""The Python API: what README and docs/python.md show, on the tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobileicsa import FloatModel, QuantizedModel, api
from mobileicsa.core.errors import InputError, UsageError, VerificationError
from tests.tiny_artifact import TEXT, make_artifact, write_checkpoint


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("api"))


def test_quantize_writes_an_artifact_and_returns_its_report(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    report = api.quantize(
        str(checkpoint),
        "w4a8",
        tmp_path / "out",
        recipe="minmax",
        calibration=str(text),
        overrides=("calibration.samples=1", "calibration.length=16"),
        targets=("generic-npu",),
    )
    assert report["scheme"] == "w4a8"
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert QuantizedModel.from_pretrained(tmp_path / "out").plan.scheme.name == "w4a8"


def test_every_back_end_generates_from_one_folder(artifact: Path) -> None:
    made = {
        backend: QuantizedModel.from_pretrained(artifact, backend=backend).generate("the dog", max_new_tokens=6)
        for backend in ("simulator", "onnx", "executorch")
    }
    assert made["onnx"].token_ids[:1] == made["executorch"].token_ids[:1] == made["simulator"].token_ids[:1]
    assert all(output.prompt_tokens == 7 for output in made.values())


def test_a_saved_copy_is_the_same_model(artifact: Path, tmp_path: Path) -> None:
    model = QuantizedModel.from_pretrained(artifact)
    model.save_pretrained(tmp_path / "copy")
    copy = QuantizedModel.from_pretrained(tmp_path / "copy")
    assert copy.generate("fox", max_new_tokens=5).token_ids == model.generate("fox", max_new_tokens=5).token_ids
    with pytest.raises(UsageError, match="exists"):
        model.save_pretrained(tmp_path / "copy")


def test_a_damaged_artifact_is_not_copied(artifact: Path, tmp_path: Path) -> None:
    QuantizedModel.from_pretrained(artifact).save_pretrained(tmp_path / "copy")
    model = QuantizedModel.from_pretrained(tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_bytes(config.read_bytes() + b" ")
    with pytest.raises(VerificationError, match=r"config\.json"):
        model.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_sampling_repeats_with_its_seed_and_streams_the_text(artifact: Path) -> None:
    model = QuantizedModel.from_pretrained(artifact)
    pieces: list[str] = []
    first = model.generate("a", max_new_tokens=8, temperature=1.0, seed=3, on_text=pieces.append)
    again = model.generate("a", max_new_tokens=8, temperature=1.0, seed=3)
    other = model.generate("a", max_new_tokens=8, temperature=1.0, seed=4)
    assert first.token_ids == again.token_ids != other.token_ids
    assert first.text.startswith("".join(pieces))


def test_float_and_quantised_models_generate_alike(artifact: Path) -> None:
    """Random weights make near ties; the first token of a W8A8 model is still the float model's."""
    prompt = "the quick brown"
    exact = FloatModel.from_pretrained(artifact.parent / "checkpoint").generate(prompt, max_new_tokens=1)
    ours = QuantizedModel.from_pretrained(artifact).generate(prompt, max_new_tokens=1)
    assert ours.token_ids == exact.token_ids


def test_export_writes_another_target_from_a_finished_artifact(artifact: Path, tmp_path: Path) -> None:
    made = api.export(artifact, "generic-npu", tmp_path / "npu")
    assert made["target"] == "generic-npu"
    assert (tmp_path / "npu" / "onnx" / "model.onnx").is_file()


def test_a_prompt_outside_the_vocabulary_is_an_input_error(artifact: Path) -> None:
    with pytest.raises(InputError, match="vocabulary"):
        QuantizedModel.from_pretrained(artifact).generate([10**6])
