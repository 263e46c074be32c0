"""Commands go by the kind of what they are given: an early-exit artifact is no language model, nor the reverse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import EARLY_EXIT, REQUIRED, write_manifest
from mobileicsa.models.exit_files import CONFIG, MODEL_TYPE


@pytest.fixture
def exits(tmp_path: Path) -> Path:
    """A folder whose manifest is of an early-exit artifact; its files are empty."""
    for name in REQUIRED[EARLY_EXIT]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    targets = {"host-cpu": {"name": "host-cpu", "description": "", "backends": ["onnx"]}}
    write_manifest(tmp_path, {"kind": EARLY_EXIT, "default_target": "host-cpu", "targets": targets})
    return tmp_path


@pytest.mark.parametrize(
    ("verb", "flags", "named"),
    [
        ("run", ["--prompt", "Hello"], "--prompt"),
        ("run", ["--chat"], "--chat"),
        ("verify", ["--layers", "0:1", "--strict"], "--strict, --layers"),
        ("bench", ["--prompt-tokens", "4"], "--prompt-tokens"),
        ("bench", ["--device", "adb"], "--device"),
        ("export", ["--target", "tosa", "--output", "x", "--layers", "0:1"], "--layers"),
    ],
)
def test_flags_of_language_models_are_refused(
    command: Command, exits: Path, verb: str, flags: list[str], named: str
) -> None:
    found = command(verb, exits, *flags)
    assert found.code == 2
    assert f"{named}: not for an early-exit model" in found.err


def test_a_run_without_inputs_says_what_is_missing(command: Command, exits: Path) -> None:
    found = command("run", exits)
    assert found.code == 2
    assert "--input" in found.err


@pytest.mark.parametrize("verb", [["eval", "--model"], ["compare"]])
def test_what_means_nothing_says_so_once(command: Command, exits: Path, tmp_path: Path, verb: list[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    flags = {"eval": ["--text", text], "compare": []}[verb[0]]
    found = command(*verb, exits, *flags)
    assert found.code == 3
    assert "early-exit" in found.err


def test_a_language_model_takes_no_inputs(command: Command, artifact: Path, tmp_path: Path) -> None:
    found = command("run", artifact, "--input", tmp_path / "x.npz")
    assert found.code == 2
    assert "--input: not for a language model" in found.err


def test_a_kind_of_a_later_version_is_named(command: Command, exits: Path) -> None:
    path = exits / layout.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "diffusion"}))
    found = command("inspect", exits)
    assert found.code == 3
    assert "diffusion" in found.err


def test_quantize_goes_by_the_model_type(command: Command, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"model_type": MODEL_TYPE}))
    found = command(
        "quantize", "--model", tmp_path, "--scheme", "w8a8", "--output", tmp_path / "o", "--recipe", "minmax"
    )
    assert found.code == 2
    assert "--recipe: not for an early-exit model" in found.err
