"""Torture list, cases 39 and 40: full disks and outputs that cannot be written."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from crash import old_artifact
from full_disk import full_disk

from mobileicsa.core.errors import EnvironmentFault, UsageError
from mobileicsa.io.atomic import WriteFault, write_bytes
from mobileicsa.io.hashing import sha256_tree
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.paths import check_output
from mobileicsa.io.staging import Staging


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Permissions mean nothing to root, so become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_fault_39_a_plan_that_needs_more_than_is_free_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="are free") as caught:
        check_output(tmp_path / "out", None, False, needed_bytes=2**60)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def write_file(staging: Staging, writer: str, source: Path) -> None:
    """Write a file of far more than 40 kB, called `file`."""
    if writer == "bytes":
        staging.write_bytes("file", source.read_bytes())
    elif writer == "tensors":
        staging.write_tensors("file", {"x": torch.zeros(50_000)})
    elif writer == "json":
        staging.write_json("file", ["x"] * 50_000)
    elif writer == "copy":
        staging.copy("file", source)
    else:
        staging.stages.save("file", "1", {"x": torch.zeros(50_000)}, {})


@pytest.mark.parametrize("writer", ["bytes", "tensors", "json", "copy", "stage"])
def test_fault_39_a_disk_that_fills_up_removes_the_work_space_and_keeps_the_old_artifact(
    tmp_path: Path, writer: str
) -> None:
    output, big = tmp_path / "out", tmp_path / "big"
    before = old_artifact(output)
    big.write_bytes(b"x" * 100_000)

    def fill() -> None:
        with full_disk(40_000), Staging(output, "0123") as staging:
            staging.write_bytes("small", b"x" * 100)
            write_file(staging, writer, big)

    with pytest.raises(WriteFault, match="cannot be written") as caught:
        fill()
    assert caught.value.exit_code == 4
    assert "file" in caught.value.message
    assert sorted(tmp_path.iterdir()) == [big, output]
    assert sha256_tree(output) == before


def test_fault_39_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")
    with pytest.raises(WriteFault, match="x: cannot be written"), full_disk(40_000):
        write_bytes(tmp_path / "x", b"x" * 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_fault_39_a_rename_that_fails_puts_the_old_artifact_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    before = old_artifact(output)
    rename = os.rename

    def fails(source: Path, target: Path) -> None:
        if Path(source).name == "artifact":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    def commit() -> None:
        with Staging(output, "0123") as staging:
            staging.write_json("manifest.json", {})
            monkeypatch.setattr(os, "rename", fails)
            staging.commit(overwrite=True)

    with pytest.raises(WriteFault, match="No space left"):
        commit()
    assert sha256_tree(output) == before
    assert list(tmp_path.iterdir()) == [output]


def test_fault_40_a_read_only_place_is_an_environment_fault() -> None:
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder) / "locked"
        locked.mkdir()
        os.chmod(folder, 0o755)
        os.chmod(locked, 0o555)
        with pytest.raises(EnvironmentFault, match="Permission denied") as caught, ordinary_user():
            check_output(locked / "out", None, False)
        assert caught.value.exit_code == 4
        with pytest.raises(EnvironmentFault, match="Permission denied"), ordinary_user():
            check_output(locked / "new" / "out", None, False)
        with pytest.raises(EnvironmentFault, match="Permission denied"), ordinary_user(), OutputLock(locked / "out"):
            pass
        with pytest.raises(EnvironmentFault, match="Permission denied"), ordinary_user():
            Staging(locked / "out", "0123").__enter__()


def test_fault_40_a_missing_parent_is_created(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "out"
    check_output(output, None, False)
    assert list(tmp_path.iterdir()) == []
    with OutputLock(output):
        assert output.parent.is_dir()


def test_fault_40_a_file_in_the_outputs_place_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is a file"):
            check_output(tmp_path / "out", None, overwrite)
    with pytest.raises(EnvironmentFault):
        check_output(tmp_path / "out" / "below", None, False)


def test_fault_40_an_output_that_is_not_empty_needs_overwrite(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    check_output(output, None, False)
    (output / "x").write_text("x")
    with pytest.raises(UsageError, match="not empty") as caught:
        check_output(output, None, False)
    assert caught.value.exit_code == 2
    check_output(output, None, True)
    with pytest.raises(UsageError, match="was filled"), Staging(output, "0123") as staging:
        staging.commit()
    assert (output / "x").read_text() == "x"
