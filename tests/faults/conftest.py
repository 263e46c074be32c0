"""Fixtures of the fault tests: a whole small model folder, and a watch on the files that are opened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from build import write_model
from fake_phone import phone
from tiny_command import Tiny

from mobileicsa.artifact import golden, plan_build
from mobileicsa.core.target import Target

__all__ = ["phone"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def weights(model: Path) -> Path:
    return model / "model.safetensors"


_OPENED: list[str] = []


_HOOKED: list[bool] = []


@pytest.fixture
def opened() -> list[str]:
    """Every path that Python opens during the test."""
    if not _HOOKED:  # an audit hook stays for the life of the process
        sys.addaudithook(lambda event, args: _OPENED.append(str(args[0])) if event == "open" else None)
        _HOOKED.append(True)
    _OPENED.clear()
    return _OPENED


@pytest.fixture
def tiny(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Everything is real but the target: exporters take ten times longer than all the rest."""
    bare = Target(name="bare", description="", backends=(), context=64, prefill_chunk=8)
    monkeypatch.setattr(plan_build, "find_target", lambda name: bare)
    monkeypatch.setattr(golden, "PROMPTS", golden.PROMPTS[:2])
    return Tiny(tmp_path, capfd)
