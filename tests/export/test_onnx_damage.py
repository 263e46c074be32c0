"""Damaged and hostile ONNX files: one clear error, before ONNX Runtime reads anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mobileicsa_export.onnx import DATA_FILE, OnnxBackend
from tiny_frozen import CONTEXT, target, tiny_frozen, tiny_spec

from mobileicsa.core.errors import InputError, MobileICSAError, VerificationError
from mobileicsa.program.frozen import build_decoder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sound")
    OnnxBackend().write(build_decoder(tiny_frozen(), primitive=False), target(), folder, {"context": CONTEXT})
    return folder


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "artifact"))


def open_it(folder: Path) -> None:
    OnnxBackend().open(folder, tiny_spec(), target(), threads=1)


def move_data(folder: Path, location: str) -> None:
    """Let every tensor of model.onnx point to `location`."""
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for item in model.graph.initializer:
        for entry in item.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_a_sound_artifact_opens(artifact: Path) -> None:
    open_it(artifact)


@pytest.mark.parametrize("lost", [1, 10, 30, 60, 100, 1000, 20_000, None])
def test_a_truncated_model_is_a_verification_error(artifact: Path, lost: int | None) -> None:
    path = artifact / "model.onnx"
    path.write_bytes(path.read_bytes()[: -lost if lost else 0])
    with pytest.raises(VerificationError, match=r"model\.onnx"):
        open_it(artifact)


def test_bit_flips_never_crash(artifact: Path) -> None:
    path = artifact / "model.onnx"
    data, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(data), 40):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(flipped)
        try:
            open_it(artifact)
        except MobileICSAError:
            refused += 1
    assert refused > 0


def test_truncated_weights_are_a_verification_error(artifact: Path) -> None:
    path = artifact / DATA_FILE
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(VerificationError, match=r"model\.onnx\.data: has \d+ bytes"):
        open_it(artifact)


def test_missing_weights_are_a_verification_error(artifact: Path) -> None:
    (artifact / DATA_FILE).unlink()
    with pytest.raises(VerificationError, match=r"model\.onnx\.data"):
        open_it(artifact)


def test_a_missing_model_is_a_verification_error(artifact: Path) -> None:
    (artifact / "model_prefill.onnx").unlink()
    with pytest.raises(VerificationError, match=r"model_prefill\.onnx: is missing"):
        open_it(artifact)


def test_the_model_of_another_artifact_is_a_verification_error(artifact: Path) -> None:
    with pytest.raises(VerificationError, match="3-layer"):
        OnnxBackend().open(artifact, tiny_spec(layers=tiny_spec().layers[:1] * 3), target())


def test_a_swapped_method_is_a_verification_error(artifact: Path) -> None:
    shutil.copy(artifact / "model_prefill.onnx", artifact / "model.onnx")
    with pytest.raises(VerificationError, match=r"model\.onnx: holds the method prefill"):
        open_it(artifact)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "a/../../outside.data"])
def test_weights_outside_of_the_folder_are_refused(artifact: Path, location: str) -> None:
    shutil.copy(artifact / DATA_FILE, artifact.parent / "outside.data")
    move_data(artifact, location)
    with pytest.raises(InputError, match="outside the folder"):
        open_it(artifact)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_linked_weights_are_refused(artifact: Path, link: object) -> None:
    outside = artifact.parent / "outside.data"
    shutil.move(artifact / DATA_FILE, outside)
    link(outside, artifact / DATA_FILE)  # type: ignore[operator]
    with pytest.raises(InputError, match="link"):
        open_it(artifact)
