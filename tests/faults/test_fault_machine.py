"""Torture list, cases 39 to 47 and 52: full disks, kills, two runs at once, no network, clocks that jump."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from build import write_model
from crash import STAGES, in_child, run

from mobileicsa.core.errors import EnvironmentFault, InputError, UsageError
from mobileicsa.io import hub
from mobileicsa.io.atomic import WriteFault, write_bytes
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.hashing import sha256_tree
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.paths import check_output, inside
from mobileicsa.io.stages import StageStore
from mobileicsa.io.staging import Staging

KILL_POINTS = [f"{stage}:{moment}" for stage in STAGES for moment in ("kill", "before", "after")]
COMMIT_POINTS = ["commit:before", "commit:kill", "commit:after"]


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """No file may grow above `size_bytes`: the kernel refuses the write in the middle, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def old_artifact(output: Path) -> str:
    output.mkdir()
    (output / "manifest.json").write_text("old")
    return sha256_tree(output)


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
    check_output(tmp_path / "a" / "b" / "out", None, False)
    assert (tmp_path / "a" / "b").is_dir()


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


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """The digest of what an uninterrupted run leaves."""
    output = tmp_path / "reference"
    assert in_child(lambda: run(output)) == 0
    return sha256_tree(output)


@pytest.mark.parametrize("point", KILL_POINTS + COMMIT_POINTS)
def test_fault_41_a_run_killed_at_a_stage_goes_on_to_the_same_bytes(tmp_path: Path, reference: str, point: str) -> None:
    output = tmp_path / "out"
    # `commit:kill` lies between moving the old artifact away and the new one in.
    old = old_artifact(output) if point == "commit:kill" else None
    assert in_child(lambda: run(output), fault=point) == -signal.SIGKILL
    if point == "commit:after":
        assert sha256_tree(output) == reference
    else:
        assert not output.exists()
    ran = run(output)
    assert sha256_tree(output) == reference
    assert sha256_tree(output) != old
    stage, _, moment = point.rpartition(":")
    if stage in STAGES:
        finished = STAGES.index(stage) + (moment == "after")
        assert ran == list(STAGES[finished:])
    assert sorted(tmp_path.iterdir()) == [output, tmp_path / "reference"]


def test_fault_41_a_run_killed_in_commit_gives_the_old_artifact_back_to_any_later_run(tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = old_artifact(output)
    assert in_child(lambda: run(output), fault="commit:kill") == -signal.SIGKILL
    with Staging(output, "another1"):
        assert sha256_tree(output) == before


def test_fault_41_a_run_killed_at_any_moment_never_looks_complete_and_goes_on(tmp_path: Path, reference: str) -> None:
    output = tmp_path / "out"
    start = time.monotonic()
    assert in_child(lambda: run(tmp_path / "timed")) == 0
    length_s = time.monotonic() - start
    moments = random.Random(0)
    killed = 0
    for _ in range(25):
        code = in_child(lambda: run(output), kill_after_s=moments.uniform(0, length_s))
        killed += code == -signal.SIGKILL
        if output.exists():
            assert sha256_tree(output) == reference
    assert killed > 0
    run(output)
    assert sha256_tree(output) == reference


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "mark cut", "other inputs", "other stage"])
def test_fault_41_a_stage_with_any_damage_does_not_count_as_done(tmp_path: Path, damage: str) -> None:
    store = StageStore(tmp_path)
    store.save("learn", "1", {"x": torch.ones(4)}, {"step": 3})
    assert store.done("learn", "1")
    tensors, mark = tmp_path / "learn.safetensors", tmp_path / "learn.json"
    data = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(data[:-1])
    elif damage == "bit":
        tensors.write_bytes(data[:-1] + b"\x01")
    elif damage == "gone":
        tensors.unlink()
    elif damage == "mark cut":
        mark.write_bytes(mark.read_bytes()[:-10])
    elif damage == "other stage":
        tensors.rename(tmp_path / "load.safetensors")
        mark.rename(tmp_path / "load.json")
    stage = "load" if damage == "other stage" else "learn"
    assert not store.done(stage, "2" if damage == "other inputs" else "1")


def hold_lock(output: Path, held: int, release: int) -> None:
    with OutputLock(output):
        os.write(held, b"x")
        os.read(release, 1)


def test_fault_43_a_second_run_on_the_same_output_is_refused_at_once_naming_the_holder(tmp_path: Path) -> None:
    held, tell_held = os.pipe()
    release, tell_release = os.pipe()
    child = os.fork()
    if child == 0:
        hold_lock(tmp_path / "out", tell_held, release)
        os._exit(0)
    os.read(held, 1)
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match=rf"pid {child} on {socket.gethostname()}, since") as caught:
        OutputLock(tmp_path / "out").__enter__()
    assert time.monotonic() - start < 1.0
    assert caught.value.exit_code == 4
    with OutputLock(tmp_path / "other"):
        pass
    os.write(tell_release, b"x")
    assert os.waitpid(child, 0)[1] == 0
    with OutputLock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_fault_43_the_lock_of_a_dead_run_is_taken_over_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def die_holding() -> None:
        OutputLock(tmp_path / "out").__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die_holding) == -signal.SIGKILL
    assert (tmp_path / "out.lock").exists()
    with caplog.at_level(logging.WARNING), OutputLock(tmp_path / "out"):
        assert "left behind by a run that died (pid" in caplog.text


def test_fault_43_a_lock_of_another_machine_on_a_network_disk_is_respected(tmp_path: Path) -> None:
    note = '{"pid": 1, "host": "elsewhere", "started": "2026-01-01T00:00:00+00:00"}'
    (tmp_path / "out.lock").write_text(note)
    with pytest.raises(EnvironmentFault, match="pid 1 on elsewhere") as caught:
        OutputLock(tmp_path / "out").__enter__()
    assert "rm '" in str(caught.value)
    assert (tmp_path / "out.lock").read_text() == note


def test_fault_43_many_runs_never_hold_the_lock_together(tmp_path: Path) -> None:
    def compete() -> None:
        for _ in range(40):
            try:
                with OutputLock(tmp_path / "out"):
                    os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
                    os.unlink(tmp_path / "alone")
            except EnvironmentFault:
                time.sleep(0.001)

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                compete()
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


@pytest.mark.parametrize("change", ["modified", "removed"])
def test_fault_45_a_file_changed_during_the_run_is_found_by_its_hash(tmp_path: Path, change: str) -> None:
    model = write_model(tmp_path / "model")
    weights = model / "model.safetensors"
    source = open_checkpoint(str(model)).tensors
    source.check_unchanged()
    status = weights.stat()
    if change == "modified":
        data = weights.read_bytes()
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors") as caught:
        source.check_unchanged()
    assert caught.value.exit_code == 3


def test_fault_45_weights_removed_during_the_run_are_an_input_error(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    source = open_checkpoint(str(model)).tensors
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        source.get("model.norm.weight")


def test_fault_46_a_local_folder_never_touches_the_network(tmp_path: Path, network_attempts: list[str]) -> None:
    checkpoint = open_checkpoint(str(write_model(tmp_path / "model")))
    checkpoint.tensors.get("model.norm.weight")
    checkpoint.write_tokenizer(tmp_path / "out")
    assert network_attempts == []


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("empty_hub_cache")
def test_fault_46_a_hub_name_without_network_is_an_environment_fault(network_attempts: list[str]) -> None:
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match="org/no-such-model: cannot be found on the model hub") as caught:
        open_checkpoint("org/no-such-model")
    assert time.monotonic() - start < hub.TIMEOUT_S + 5
    assert caught.value.exit_code == 4
    assert network_attempts


@contextmanager
def hub_server(reply: bytes | None) -> Iterator[str]:
    """A hub on this machine that gives every request the same answer, or none at all."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            if reply is not None:
                connection.recv(65536)
                connection.sendall(reply)
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in connections:
            connection.close()


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\nX-Error-Code: %s\r\n\r\n"


@pytest.mark.usefixtures("empty_hub_cache")
@pytest.mark.parametrize("reply", [None, NOT_FOUND % b"RepoNotFound", NOT_FOUND % b"RevisionNotFound", b"garbage"])
def test_fault_46_a_hub_that_hangs_or_does_not_know_the_model_is_an_environment_fault(
    monkeypatch: pytest.MonkeyPatch, reply: bytes | None
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "TIMEOUT_S", 0.3)
    with hub_server(reply) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        start = time.monotonic()
        with pytest.raises(EnvironmentFault, match=r"org/model: cannot be found .*revision v9"):
            open_checkpoint("org/model", revision="v9")
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("when", [0, 1, 4_000_000_000])
def test_fault_47_file_times_do_not_decide_what_is_done(tmp_path: Path, when: int) -> None:
    store = StageStore(tmp_path)
    store.save("learn", "1", {"x": torch.ones(4)}, {})
    for path in tmp_path.iterdir():
        os.utime(path, (when, when))
    assert store.done("learn", "1")
    assert not store.done("learn", "2")


def test_fault_47_a_clock_at_1970_changes_no_byte(
    tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    run(tmp_path / "out")
    monkeypatch.undo()
    time.tzset()
    assert sha256_tree(tmp_path / "out") == reference


@pytest.mark.parametrize("root", ["model", "."])
@pytest.mark.parametrize(
    "name", ["../model-secret/x", "link", "folder/x", "hard", "/etc/passwd", "", "a\\..\\b", "C:x"]
)
def test_fault_52_external_data_that_leads_outside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, name: str
) -> None:
    model, secret = tmp_path / "model", tmp_path / "model-secret"
    model.mkdir()
    secret.mkdir()
    (secret / "x").write_text("secret")
    (model / "link").symlink_to(secret / "x")
    (model / "folder").symlink_to(secret)
    (model / "hard").hardlink_to(secret / "x")
    monkeypatch.chdir(model if root == "." else tmp_path)
    # Path("") is the empty base directory that other readers take as "no check".
    with pytest.raises(InputError):
        inside(Path("" if root == "." else root), name)


def test_fault_52_links_that_stay_inside_are_read(tmp_path: Path) -> None:
    (tmp_path / "weights.data").write_text("x")
    (tmp_path / "soft").symlink_to("weights.data")
    (tmp_path / "hard").hardlink_to(tmp_path / "weights.data")
    for name in ("weights.data", "soft", "hard", "not/yet/there"):
        assert inside(tmp_path, name) == tmp_path / name


def test_fault_52_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError):
        inside(tmp_path, "loop")
