"""Rules for the whole suite: no network, one core; data and the demo model where they are present."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.io.checkpoint import Checkpoint, open_checkpoint

REPOSITORY = Path(__file__).parents[1]
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ATTEMPTS: list[str] = []


class NetworkBlocked(OSError):
    """A test tried to leave this machine."""


def _guard(host: Any) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if host is not None and host not in LOOPBACK:
        ATTEMPTS.append(str(host))
        raise NetworkBlocked(f"tests may not connect to {host}")


class GuardedSocket(socket.socket):
    def connect(self, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _guard(address[0])
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _guard(address[0])
        return super().connect_ex(address)


def pytest_configure() -> None:
    """Before any test module is imported, so that an import cannot connect either."""
    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *arguments: Any, **named: Any) -> Any:
        _guard(host)
        return look_up(host, *arguments, **named)

    socket.socket = GuardedSocket  # type: ignore[misc]
    socket.getaddrinfo = guarded_look_up
    # Proxies would carry a connection through the loopback address.
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    torch.set_num_threads(1)
    _keep_to_one_core()


def _keep_to_one_core() -> None:
    """Workers side by side take a core each: runtimes start as many threads as they may use cores, and these spin."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


@pytest.fixture
def network_attempts() -> Iterator[list[str]]:
    """Hosts that the code under test tried to reach."""
    ATTEMPTS.clear()
    yield ATTEMPTS
    ATTEMPTS.clear()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = Path(os.environ.get("MOBILEICSA_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder} (set MOBILEICSA_DATA)")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    """The bundled demo model."""
    try:
        return open_checkpoint("smollm2-135m")
    except EnvironmentFault as error:
        pytest.skip(f"{error.message} ({error.hint})")


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished artifact of a tiny random model, made once; its checkpoint lies beside it. Do not change its files."""
    from tiny_artifact import make_artifact

    return make_artifact(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, of another scheme, for the integer-only target. Do not change its files."""
    from tiny_artifact import make_artifact

    return make_artifact(tmp_path_factory.mktemp("other"), scheme="w4a8", recipe="minmax", target="generic-npu")
