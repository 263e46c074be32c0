"""Damaged .pte files: one clear error before the runtime, which may crash on them, reads anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mobileicsa_export.executorch import DIGEST_FILE, MODEL_FILE, ExecutorchBackend, sha256

from mobileicsa.artifact.manifest import read_manifest
from mobileicsa.artifact.model import read_frozen, target_of
from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.core.target import Target

Open = Callable[[Path], None]


@pytest.fixture
def folder(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact / "executorch", tmp_path / "executorch"))


@pytest.fixture
def spec(artifact: Path) -> ModelSpec:
    return read_frozen(artifact).plan.spec


@pytest.fixture
def made_for(artifact: Path) -> Target:
    return target_of(read_manifest(artifact), None)


@pytest.fixture
def open_it(spec: ModelSpec, made_for: Target) -> Open:
    return lambda folder: ExecutorchBackend().open(folder, spec, made_for, threads=1).close()


def sign(folder: Path) -> None:
    """Make the digest fit the file, as one who exchanges both would."""
    (folder / DIGEST_FILE).write_text(f"{sha256(folder / MODEL_FILE)}  {MODEL_FILE}\n")


def test_a_sound_file_opens(folder: Path, open_it: Open) -> None:
    open_it(folder)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("signed", [False, True])
def test_a_truncated_file_is_a_verification_error(folder: Path, open_it: Open, kept: float, signed: bool) -> None:
    path = folder / MODEL_FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    if signed:
        sign(folder)
    with pytest.raises(VerificationError, match=r"model\.pte"):
        open_it(folder)


def test_every_flipped_bit_is_a_verification_error(folder: Path, open_it: Open) -> None:
    path = folder / MODEL_FILE
    data, random = path.read_bytes(), np.random.default_rng(0)
    for place in (0, 4, 8, len(data) - 1, *random.integers(0, len(data), 40)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(flipped)
        with pytest.raises(VerificationError, match=r"model\.pte: SHA-256"):
            open_it(folder)


def test_a_file_that_is_no_pte_is_a_verification_error(folder: Path, open_it: Open) -> None:
    (folder / MODEL_FILE).write_bytes(bytes(4096))
    sign(folder)
    with pytest.raises(VerificationError, match="ExecuTorch cannot load it"):
        open_it(folder)


@pytest.mark.parametrize("text", ["", "not a digest", "\xff\xfe"])
def test_a_damaged_digest_is_a_verification_error(folder: Path, open_it: Open, text: str) -> None:
    (folder / DIGEST_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(VerificationError, match=r"model\.pte"):
        open_it(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, DIGEST_FILE])
def test_a_missing_file_is_a_verification_error(folder: Path, open_it: Open, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(VerificationError, match=name):
        open_it(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (LayerSpec(),) * 3}, "get_n_layers is 2, expected 3"),
        ({"vocab_size": 97}, "get_vocab_size is 259, expected 97"),
        ({"bos_id": 7}, "get_bos_id is 1, expected 7"),
    ],
)
def test_the_model_of_another_artifact_is_a_verification_error(
    folder: Path, spec: ModelSpec, made_for: Target, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(VerificationError, match=message):
        ExecutorchBackend().open(folder, replace(spec, **changes), made_for)


def test_a_file_for_another_target_is_a_verification_error(folder: Path, spec: ModelSpec, made_for: Target) -> None:
    with pytest.raises(VerificationError, match=f"get_max_seq_len is {made_for.context}, expected 4000"):
        ExecutorchBackend().open(folder, spec, replace(made_for, context=4000))
