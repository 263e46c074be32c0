"""Data sets: shapes and splits of the real ones, and errors where they are absent or damaged."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mobileicsa.core.errors import InputError
from mobileicsa.methods import cifar10, fsdd
from mobileicsa.methods.log_mel import log_mel


@pytest.mark.parametrize("module", [cifar10, fsdd], ids=lambda module: module.FOLDER)
def test_absent_data_is_named_with_a_remedy(module: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        module.identity(tmp_path)
    assert str(tmp_path / module.FOLDER / module.FILES[0]) in str(raised.value)
    assert "data=DIR" in str(raised.value)
    with pytest.raises(InputError, match="data=DIR"):
        module.identity(None)


@pytest.mark.parametrize("module", [cifar10, fsdd], ids=lambda module: module.FOLDER)
def test_a_damaged_archive_is_named(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / module.FOLDER).mkdir()
    for name in module.FILES:
        (tmp_path / module.FOLDER / name).write_bytes(b"not an archive")
    with pytest.raises(InputError, match=module.FILES[0]):
        module.load(tmp_path)
    for name in module.FILES:
        tarfile.open(tmp_path / module.FOLDER / name, "w:gz").close()
    with pytest.raises(InputError, match="holds no"):
        module.load(tmp_path)


def test_digits_are_split_by_index_and_grouped_by_speaker(data_dir: Path) -> None:
    data = fsdd.load(data_dir)
    assert (len(data.train), len(data.test), data.classes) == (1000, 250, 10)
    assert tuple(data.train.inputs.shape[1:]) == (1, 40, 32)
    assert sorted(set(data.test.groups)) == ["george", "jackson", "lucas", "nicolas", "theo"]


def test_a_tone_is_loudest_at_its_own_mel() -> None:
    time = np.arange(8000) / 8000
    tones = [np.sin(2 * np.pi * hz * time).astype(np.float32) for hz in (300, 1200, 3000)]
    peaks = [int(log_mel(tone, fsdd.MEL).mean(axis=1).argmax()) for tone in tones]
    assert peaks == sorted(set(peaks))


def test_images_are_balanced_and_normalised(data_dir: Path) -> None:
    data = cifar10.load(data_dir)
    assert data.train.labels.bincount().tolist() == [1000] * 10
    assert data.test.inputs.shape == (2000, 3, 32, 32)
    assert abs(float(data.train.inputs.mean())) < 0.05
