"""`compare`: texts in JSON, the report and its page; prompts from a file; an interruption keeps finished pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from mobileicsa.artifact.model import QuantizedModel


def comparison(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())["comparison"]
    return found


@pytest.mark.parametrize("backend", ["simulator", "onnx", "executorch"])
def test_compare_gives_both_texts_and_keeps_them_in_the_report(
    command: Command, own_artifact: Path, checkpoint: Path, backend: str
) -> None:
    given = ["--tokens", 6, "--count", 2, "--backend", backend, "--reference", checkpoint]
    document = command("compare", own_artifact, *given, "--json").json
    assert (document["backend"], document["prompts"], document["finished"]) == (backend, 2, True)
    for pair in document["pairs"]:
        assert pair["equal_tokens"] <= pair["tokens"] <= 6
        assert {"text", "token_ids"} <= pair["float"].keys() & pair["artifact"].keys()
    assert comparison(own_artifact) == {name: value for name, value in document.items() if name != "folder"}
    page = (own_artifact / "report.html").read_text()
    assert page.count('<details class="pair"') == 2
    assert f"{document['identical']} of 2 texts are identical" in page


def test_the_terminal_shows_where_texts_part(command: Command, own_artifact: Path, checkpoint: Path) -> None:
    result = command("compare", own_artifact, "--tokens", 5, "--count", 1, "--reference", checkpoint, "--no-save")
    assert result.code == 0
    assert "The capital of France is" in result.out
    assert "before the first difference" in result.out
    assert "prompt 1/1" in result.err
    assert "comparison" not in json.loads((own_artifact / "report.json").read_text())


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.txt", "first\n\n  \nsecond one\nthird"), ("p.jsonl", '{"text": "first"}\n{"text": "sec\\nond"}\n')],
)
def test_prompts_come_from_a_file_one_a_line(
    command: Command, artifact: Path, checkpoint: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    given = ["--prompts", tmp_path / name, "--count", 2, "--tokens", 1, "--reference", checkpoint, "--no-save"]
    prompts = [pair["prompt"] for pair in command("compare", artifact, *given, "--json").json["pairs"]]
    assert prompts == ["first", "second one" if name.endswith(".txt") else "sec\nond"]


def test_an_interrupted_comparison_says_what_is_kept_and_goes_on(
    command: Command, own_artifact: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["compare", own_artifact, "--tokens", 3, "--count", 3, "--reference", checkpoint]
    generate, calls = QuantizedModel.generate, []

    def stopped(self: QuantizedModel, prompt: str, **options: Any) -> Any:
        calls.append(prompt)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, prompt, **options)

    monkeypatch.setattr(QuantizedModel, "generate", stopped)
    result = command(*given)
    assert (result.code, result.out) == (130, "")
    assert "1 of 3 pairs are kept: the same command goes on behind them" in result.err
    assert (len(comparison(own_artifact)["pairs"]), comparison(own_artifact)["finished"]) == (1, False)
    assert "Interrupted: 1 of 3 prompts" in (own_artifact / "report.html").read_text()
    assert command(*given).code == 0
    assert len(calls) == 4
    assert (len(comparison(own_artifact)["pairs"]), comparison(own_artifact)["finished"]) == (3, True)


def test_a_model_that_is_not_where_the_report_says_is_asked_for(
    command: Command, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("compare", artifact)
    assert result.code == 3
    assert "error: checkpoint: the artifact was made from a model of this name" in result.err
    assert "--reference" in result.err
