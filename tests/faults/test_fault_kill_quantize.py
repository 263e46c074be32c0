"""Torture list, case 41, as a user meets it: `mobileicsa quantize` killed anywhere, then run again with --resume."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from crash import in_child, old_artifact
from quick_backend import quick_backend
from tiny_artifact import TEXT, write_checkpoint

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import check_files, read_manifest
from mobileicsa.cli.main import execute
from mobileicsa.io.hashing import sha256_tree
from mobileicsa.io.staging import Staging

STAGES = ["calibration", "prefix", "stream-0", "layer-000", "stream-1", "layer-001", "export-quick-quick"]
POINTS = [f"{stage}:{moment}" for stage in STAGES for moment in ("kill", "after")]
COMMIT_POINTS = ["commit:before", "commit:kill", "commit:after"]
REAL_STAGES = ["export-host-cpu-onnx", "export-host-cpu-executorch"]

Quantize = Callable[[Path], int]


def quantizer(folder: Path, *more: str) -> Quantize:
    """The command with --resume on the tiny model, as a function of the output folder; gives its exit code."""
    checkpoint = write_checkpoint(folder / "checkpoint")
    text = folder / "calibration.txt"
    text.write_text(TEXT)
    given = ["quantize", "--model", str(checkpoint), "--scheme", "w4a8", "--recipe", "rotated", "--overwrite"]
    given += ["--calibration", str(text)]
    amount = ["calibration.samples=2", "calibration.length=32", "prefix_tokens=1", "alphas=[0.5]"]

    def run(output: Path) -> int:
        return execute([*given, "--resume", "--output", str(output), *more, *amount])

    return run


def different_files(manifest: bytes, reference: bytes) -> list[str]:
    one, other = json.loads(manifest)["files"], json.loads(reference)["files"]
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def check_never_half(parent: Path, reference: bytes) -> None:
    """Every folder that could be taken for a finished artifact is one, and the right one."""
    for manifest in parent.rglob(layout.MANIFEST):
        assert different_files(manifest.read_bytes(), reference) == []
        assert manifest.read_bytes() == reference
        assert check_files(manifest.parent, read_manifest(manifest.parent)) == []


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quantize]:
    with quick_backend():
        yield quantizer(tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def finished(quick: Quantize, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The manifest that an uninterrupted run leaves (it holds the hash of every other file), and how long it took."""
    output = tmp_path_factory.mktemp("reference") / "out"
    start = time.monotonic()
    complete(quick, output)
    return (output / layout.MANIFEST).read_bytes(), time.monotonic() - start


def _exit_with_code_of(run: Quantize, output: Path) -> None:
    if code := run(output):
        raise SystemExit(code)


def complete(run: Quantize, output: Path) -> None:
    assert in_child(partial(_exit_with_code_of, run, output)) == 0


def test_fault_41_the_same_command_gives_the_same_bytes(
    quick: Quantize, finished: tuple[bytes, float], tmp_path: Path
) -> None:
    complete(quick, tmp_path / "out")
    assert (tmp_path / "out" / layout.MANIFEST).read_bytes() == finished[0]


@pytest.mark.parametrize("point", POINTS + COMMIT_POINTS)
def test_fault_41_quantize_killed_at_a_stage_goes_on_to_the_same_bytes(
    quick: Quantize, finished: tuple[bytes, float], tmp_path: Path, point: str
) -> None:
    output = tmp_path / "out"
    old = old_artifact(output) if point.startswith("commit") else None
    assert in_child(lambda: quick(output), fault=point) == -signal.SIGKILL
    if point == "commit:before":
        assert sha256_tree(output) == old
    elif point != "commit:after":
        assert not output.exists()
    complete(quick, output)
    check_never_half(tmp_path, finished[0])
    assert list(tmp_path.iterdir()) == [output]


def kill_often(run: Quantize, folder: Path, reference: bytes, length_s: float, kills: int, seed: int) -> None:
    """Kill runs of one output at random moments; each goes on from the last, a finished one makes room for a new."""
    moments = random.Random(seed)
    output, killed = folder / "out-0", 0
    while killed < kills:
        work = partial(_exit_with_code_of, run, output)
        code = in_child(work, kill_after_s=moments.uniform(0, length_s))
        assert code in (0, -signal.SIGKILL)
        check_never_half(folder, reference)
        killed += code == -signal.SIGKILL
        if code == 0:
            assert (output / layout.MANIFEST).is_file()
            output = folder / f"out-{killed}-{moments.random()}"
    complete(run, output)
    assert (output / layout.MANIFEST).read_bytes() == reference
    check_never_half(folder, reference)


def test_fault_41_quantize_killed_at_any_moment_goes_on_to_the_same_bytes(
    quick: Quantize, finished: tuple[bytes, float], tmp_path: Path
) -> None:
    reference, length_s = finished
    kill_often(quick, tmp_path, reference, length_s, kills=10, seed=41)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_fault_41_the_real_writers_killed_at_50_moments_go_on_to_the_same_bytes(
    real: tuple[Quantize, bytes, float], tmp_path: Path, seed: int
) -> None:
    run, reference, length_s = real
    kill_often(run, tmp_path, reference, length_s, kills=10, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("point", [f"{stage}:{moment}" for stage in REAL_STAGES for moment in ("before", "after")])
def test_fault_41_the_real_writers_killed_at_a_stage_go_on_to_the_same_bytes(
    real: tuple[Quantize, bytes, float], tmp_path: Path, point: str
) -> None:
    run, reference, _ = real
    output = tmp_path / "out"
    assert in_child(lambda: run(output), fault=point) == -signal.SIGKILL
    assert not output.exists()
    complete(run, output)
    check_never_half(tmp_path, reference)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quantize, bytes, float]:
    """The same with the ONNX and ExecuTorch writers: command, manifest and length of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("real")
    run = quantizer(folder)
    start = time.monotonic()
    complete(run, folder / "out")
    return run, (folder / "out" / layout.MANIFEST).read_bytes(), time.monotonic() - start


@pytest.mark.parametrize("what", ["work space", "old artifact"])
def test_fault_41_a_folder_killed_while_it_is_removed_does_not_look_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    old_artifact(tmp_path / "out")
    # As if the kill came before the first other file is gone.
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **options: None)
    with Staging(tmp_path / "out", "0123abcd") as staging:
        staging.write_json(layout.MANIFEST, {})
        if what == "work space":
            staging.discard()
        else:
            staging.commit(overwrite=True)
    left = [path.parent for path in tmp_path.rglob(layout.MANIFEST)]
    assert left == [tmp_path / "out"]
