"""Torture list, cases 45 and 46: inputs that change during the run, and a hub that cannot be reached."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from build import write_model

from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.io import hub
from mobileicsa.io.checkpoint import open_checkpoint


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
            open_checkpoint("org/model@v9")
        assert time.monotonic() - start < 10
