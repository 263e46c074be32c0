"""Exit codes 0 to 5, refusals before heavy work, and hints. (6 and internal errors: test_json.)"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Command

CANNED: list[tuple[str, int, str]] = [
    ("quntize", 2, "Did you mean 'quantize'?"),
    ("recipes shw", 2, "Did you mean 'show'?"),
    ("schemes --jsn", 2, "did you mean --json?"),
    ("verify", 2, "see `mobileicsa verify --help`"),
    ("quantize --model m --scheme w8a8 --output", 2, "see `mobileicsa"),
    ("quantize --model m --scheme w8a8 --output o --seed x", 2, "--seed"),
    ("quantize --model m --scheme w8a8 --output o --effort fst", 2, "did you mean fast?"),
    ("quantize --model m --scheme w8a9 --output o", 3, "did you mean w8a8?"),
    ("quantize --model m --scheme w8a8 --output o --recipe prefx", 3, "did you mean prefix?"),
    ("quantize --model m --scheme w8a8 --output o --target host-cup", 3, "did you mean host-cpu?"),
    ("quantize --model m --scheme w8a8 --output o alhas=[1]", 3, "did you mean alphas?"),
    ("quantize --model no-such-model --scheme w8a8 --output o", 3, "smollm2-135m"),
    ("recipes show prefx", 3, "did you mean prefix?"),
    ("verify no-such-folder", 3, "manifest.json"),
    ("inspect no-such-folder", 3, "manifest.json"),
    ("report no-such-folder", 3, "manifest.json"),
    ("run no-such-folder --prompt x", 3, "no such folder or file"),
    ("bench no-such-folder", 3, "manifest.json"),
    ("compare no-such-folder", 3, "manifest.json"),
    ("export no-such-folder --target host-cpu --output o", 3, "manifest.json"),
    ("recipes cp prefix no-such-folder/x.yaml", 4, "cannot be written"),
]
ON_ARTIFACT: list[tuple[str, int, str]] = [
    ("run {} --backend onx --prompt x", 3, "did you mean onnx?"),
    ("run {}", 2, "--prompt"),
    ("run {} --prompt x --max-new-tokens 0", 2, "--max-new-tokens"),
    ("run {} --prompt x --temperature -1", 2, "--temperature"),
    ("verify {} --backend quick", 3, "known are simulator, "),
    ("bench {} --baseline flot", 2, "'flot' is not one of 'float'"),
    ("bench {} --repeat 0", 2, "--repeat 0"),
    ("bench {} --prompt-tokens 5000", 2, "use at most"),
    ("eval --model {} --text no-such-file", 3, "no such file"),
    ("eval --model {} --text {}/recipe.yaml --window 0", 2, "--window 0"),
    ("eval --model {} --text {}/recipe.yaml --window 8 --by-position --stride 2", 2, "--stride 2"),
    ("compare {} --tokens 0", 2, "--tokens"),
    ("compare {} --backend onx", 3, "did you mean onnx?"),
    ("compare {} --prompts no-such-file", 3, "no such file"),
    ("compare {} --reference {}/../checkpoint --tokens 96", 3, "use fewer --tokens"),
    ("inspect {} --edges (", 2, "regular expression"),
    ("recipes cp prefix {}", 2, "exists"),
    ("quantize --model {}/../checkpoint --scheme w8a8 --output {}", 2, "replace it with --overwrite"),
]


def refused(result: Any, code: int, words: str) -> None:
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("error: ") or "\nerror: " in result.err
    assert words in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(("line", "code", "words"), CANNED, ids=[line for line, _, _ in CANNED])
def test_a_wrong_command_is_refused_with_its_code_and_a_hint(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(command(*line.split()), code, words)
    document = command(*line.split(), "--json").json
    assert document["error"]["exit_code"] == code
    assert words in f"{document['error']['message']} {document['error']['hint']}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("line", "code", "words"), ON_ARTIFACT, ids=[line for line, _, _ in ON_ARTIFACT])
def test_a_wrong_request_to_an_artifact_is_refused_with_its_code_and_a_hint(
    command: Command, artifact: Path, line: str, code: int, words: str
) -> None:
    refused(command(*(word.format(artifact) for word in line.split())), code, words)


def test_no_command_at_all_shows_the_help_and_is_wrong_usage(command: Command) -> None:
    for group in ([], ["recipes"]):
        result = command(*group)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("Usage: mobileicsa")
        assert command(*group, "--json").json["error"]["message"] == "Missing command"


def test_version_is_printed(command: Command) -> None:
    result = command("--version")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("mobileicsa ")


def test_a_damaged_file_fails_verification_by_its_name(command: Command, own_artifact: Path) -> None:
    with (own_artifact / "onnx" / "model.onnx.data").open("r+b") as file:
        file.write(b"\xff")
    result = command("verify", own_artifact, "--json")
    assert (result.code, result.json["ok"]) == (5, False)
    assert "onnx/model.onnx.data" in result.json["problems"][0]
    refused(command("run", own_artifact, "--backend", "onnx", "--prompt", "x"), 5, "onnx/model.onnx.data")
    shown = command("verify", own_artifact)
    assert shown.code == 5
    assert "FAILED  onnx/model.onnx.data" in shown.out
    assert "verification FAILED" in shown.out


def listing(folder: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_dry_run_writes_nothing(command: Command, quantize: list[str], tmp_path: Path) -> None:
    before = listing(Path(quantize[2]).parent)
    result = command(*quantize, "--output", tmp_path / "new" / "folder" / "out", "--dry-run")
    assert result.code == 0
    assert "nothing was written" in result.out
    assert list(tmp_path.iterdir()) == []
    assert listing(Path(quantize[2]).parent) == before


@pytest.mark.usefixtures("quick")
def test_an_output_that_is_not_empty_is_replaced_only_with_overwrite(
    command: Command, quantize: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    refused(command(*quantize, "--output", output), 2, "--overwrite")
    refused(command(*quantize, "--output", output, "--dry-run"), 2, "--overwrite")
    assert (output / "mine.txt").read_text() == "mine"
    assert command(*quantize, "--output", output, "--overwrite").code == 0
    assert not (output / "mine.txt").exists()
    assert (output / "manifest.json").is_file()
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.usefixtures("quick")
def test_an_export_that_fails_leaves_nothing_behind(
    command: Command, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quick_backend import TARGET, QuickBackend

    from mobileicsa import api

    def fail(*arguments: Any) -> None:
        raise RuntimeError("in the writer")

    monkeypatch.setattr(api, "find_target", lambda name: TARGET)
    monkeypatch.setattr(QuickBackend, "write", fail)
    result = command("export", artifact, "--target", "quick", "--output", tmp_path / "out")
    assert result.code == 1
    assert "--resume" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_quantize_of_a_model_without_weights_is_bad_input(
    command: Command, quantize: list[str], tmp_path: Path
) -> None:
    shutil.copytree(quantize[2], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    quantize[2] = str(tmp_path / "model")
    refused(command(*quantize, "--output", tmp_path / "out"), 3, "safetensors")
    assert not (tmp_path / "out").exists()
