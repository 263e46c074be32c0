"""Damaged .pte files: one clear error before the runtime, which may crash on them, reads anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mobileicsa_export.executorch import DIGEST_FILE, MODEL_FILE, ExecutorchBackend, sha256
from tiny_frozen import CONTEXT, target, tiny_frozen, tiny_spec

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import LayerSpec
from mobileicsa.program.frozen import build_decoder

SPEC = tiny_spec(layers=(LayerSpec(),))
METADATA = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [], "context": CONTEXT}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sound")
    decoder = build_decoder(tiny_frozen(layers=(LayerSpec(),)), primitive=False)
    ExecutorchBackend().write(decoder, target(), folder, METADATA)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "artifact"))


def open_it(folder: Path) -> None:
    ExecutorchBackend().open(folder, SPEC, target(), threads=1).close()


def sign(folder: Path) -> None:
    """Make the digest fit the file, as one who exchanges both would."""
    (folder / DIGEST_FILE).write_text(f"{sha256(folder / MODEL_FILE)}  {MODEL_FILE}\n")


def test_a_sound_file_opens(folder: Path) -> None:
    open_it(folder)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("signed", [False, True])
def test_a_truncated_file_is_a_verification_error(folder: Path, kept: float, signed: bool) -> None:
    path = folder / MODEL_FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    if signed:
        sign(folder)
    with pytest.raises(VerificationError, match=r"model\.pte"):
        open_it(folder)


def test_every_flipped_bit_is_a_verification_error(folder: Path) -> None:
    path = folder / MODEL_FILE
    data, random = path.read_bytes(), np.random.default_rng(0)
    for place in (0, 4, 8, len(data) - 1, *random.integers(0, len(data), 40)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(flipped)
        with pytest.raises(VerificationError, match=r"model\.pte: SHA-256"):
            open_it(folder)


def test_a_file_that_is_no_pte_is_a_verification_error(folder: Path) -> None:
    (folder / MODEL_FILE).write_bytes(bytes(4096))
    sign(folder)
    with pytest.raises(VerificationError, match="ExecuTorch cannot load it"):
        open_it(folder)


@pytest.mark.parametrize("text", ["", "not a digest", "\xff\xfe"])
def test_a_damaged_digest_is_a_verification_error(folder: Path, text: str) -> None:
    (folder / DIGEST_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(VerificationError, match=r"model\.pte"):
        open_it(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, DIGEST_FILE])
def test_a_missing_file_is_a_verification_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(VerificationError, match=name):
        open_it(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (LayerSpec(),) * 3}, "get_n_layers is 1, expected 3"),
        ({"vocab_size": 97}, "get_vocab_size is 96, expected 97"),
        ({"bos_id": 7}, "get_bos_id is 1, expected 7"),
    ],
)
def test_the_model_of_another_artifact_is_a_verification_error(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(VerificationError, match=message):
        ExecutorchBackend().open(folder, tiny_spec(**{"layers": (LayerSpec(),), **changes}), target())


def test_a_file_for_another_target_is_a_verification_error(folder: Path) -> None:
    from dataclasses import replace

    with pytest.raises(VerificationError, match=f"get_max_context_len is {CONTEXT}, expected 48"):
        ExecutorchBackend().open(folder, SPEC, replace(target(), context=48))
