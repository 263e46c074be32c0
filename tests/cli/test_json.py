"""With --json standard output holds one JSON document with the promised keys, and nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from mobileicsa.artifact import manifest
from mobileicsa.core.errors import DeviceError

LISTINGS: list[tuple[list[str], set[str]]] = [
    (["schemes"], {"schemes"}),
    (["targets"], {"targets"}),
    (["recipes", "ls"], {"recipes"}),
    (["recipes", "show", "prefix"], {"name", "prefix_tokens", "smoothing", "ranges", "weights", "calibration"}),
    (["methods"], {"methods"}),
    (["doctor"], {"versions", "python", "cpu", "cores", "ram_bytes", "available_memory_bytes", "backends", "adb"}),
]


@pytest.mark.parametrize(("arguments", "keys"), LISTINGS, ids=[" ".join(arguments) for arguments, _ in LISTINGS])
def test_a_listing_is_one_document(command: Command, arguments: list[str], keys: set[str]) -> None:
    result = command(*arguments, "--json")
    assert (result.code, result.err) == (0, "")
    assert keys <= result.json.keys()


def test_recipes_cp_names_the_file_it_wrote(command: Command, tmp_path: Path) -> None:
    result = command("recipes", "cp", "prefix", tmp_path / "mine.yaml", "--json")
    assert result.json == {"recipe": "prefix", "path": str(tmp_path / "mine.yaml")}
    assert command("recipes", "show", tmp_path / "mine.yaml", "--json").json["prefix_tokens"] == 3


@pytest.mark.parametrize("backend", ["simulator", "onnx", "executorch"])
def test_run_gives_text_ids_and_speeds(command: Command, artifact: Path, backend: str) -> None:
    result = command("run", artifact, "--backend", backend, "--prompt", "The fox", "--max-new-tokens", 3, "--json")
    document = result.json
    assert result.code == 0
    assert document["backend"] == backend
    assert isinstance(document["text"], str)
    assert 1 <= len(document["token_ids"]) <= 3
    assert all(isinstance(token, int) for token in document["token_ids"])
    assert document["prefill_tokens_per_s"] > 0
    assert document["decode_tokens_per_s"] > 0


@pytest.mark.parametrize(("backend", "given"), [(None, []), ("onnx", ["--backend", "onnx"])])
def test_eval_of_an_artifact_gives_perplexity_tokens_backend_and_bos(
    command: Command, artifact: Path, text: Path, backend: str | None, given: list[str]
) -> None:
    result = command(
        "eval", "--model", artifact, "--text", text, "--window", 16, "--max-windows", 2, "--no-save", "--json", *given
    )
    document = result.json
    assert result.code == 0
    assert document["perplexity"] > 1
    assert document["tokens"] == 30
    assert document["backend"] == (backend or "simulator")
    assert document["bos"] is True


def test_eval_of_a_model_is_in_float(command: Command, checkpoint: Path, text: Path) -> None:
    document = command("eval", "--model", checkpoint, "--text", text, "--window", 16, "--max-windows", 1, "--json").json
    assert (document["backend"], document["tokens"], document["bos"]) == ("float", 15, True)


def test_eval_by_position_stands_beside_the_evaluation_in_the_report(
    command: Command, own_artifact: Path, checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobileicsa.evaluate.by_position.FIRST_END", 8)
    given = ["eval", "--model", own_artifact, "--text", text, "--reference", checkpoint, "--json"]
    assert command(*given, "--window", 16, "--max-windows", 2).code == 0
    before = json.loads((own_artifact / "report.json").read_text())["evaluation"]
    document = command(*given, "--by-position", "--window", 40).json
    found = document["by_position"]
    assert [row["from"] for row in found["buckets"]] == [0, 8, 16, 32]
    prefix = json.loads((own_artifact / "quant_plan.json").read_text())["prefix_ids"]
    assert document.get("reference_prefix", []) == prefix
    assert found["drift"] in (True, False)
    report = json.loads((own_artifact / "report.json").read_text())
    assert report["evaluation"] == before
    assert report["by_position"]["buckets"] == found["buckets"]
    assert report["by_position"]["window"] == 40
    page = (own_artifact / "report.html").read_text()
    assert f"{found['slope']:+.4f}" in page
    assert "8–15" in page


def test_eval_by_position_takes_long_windows_by_itself(command: Command, artifact: Path, text: Path) -> None:
    # The tiny model's context holds 96 tokens.
    message = command("eval", "--model", artifact, "--text", text, "--by-position", "--json").json["error"]["message"]
    assert message.startswith("--window 2048: ")


def test_verify_gives_each_back_ends_agreement(command: Command, artifact: Path) -> None:
    result = command("verify", artifact, "--no-greedy", "--no-save", "--json")
    document = result.json
    assert (result.code, document["ok"]) == (0, True)
    assert set(document["backends"]) == {"simulator", "onnx", "executorch"}
    for row in document["backends"].values():
        assert 0 <= row["equal_share"] <= 1
        assert isinstance(row["max_steps"], int)


def test_bench_gives_the_figures_beside_float(command: Command, artifact: Path) -> None:
    given = ["--backend", "onnx", "--repeat", 1, "--prompt-tokens", 4, "--generate-tokens", 2, "--no-save", "--json"]
    result = command("bench", artifact, *given)
    row = result.json["backends"]["onnx"]
    assert result.code == 0
    for figure in ("load_ms", "first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes"):
        assert row[figure] > 0
    assert row["bytes_per_token"] > 0


def test_inspect_counts_encodings_operators_and_float_leftovers(command: Command, artifact: Path) -> None:
    document = command("inspect", artifact, "--json").json
    assert sum(document["census"]["edges"].values()) == len(document["edges"])
    written = document["targets"]["host-cpu"]
    assert written["onnx"]["operators"]["decode"]["MatMul"] > 0
    assert written["onnx"]["placement"]["float"] > 0
    assert written["executorch"]["bytes_per_decoder_weight"] > 0.5
    assert document["worst_edges"][0]["sqnr_db"] <= document["worst_edges"][-1]["sqnr_db"]


def test_inspect_lists_only_the_edges_asked_for(command: Command, artifact: Path) -> None:
    names = command("inspect", artifact, "--edges", r"^layers\.1\.attn\.q_", "--json").json["edges"]
    assert names
    assert all(name.startswith("layers.1.attn.q_") for name in names)


def test_report_names_the_page(command: Command, own_artifact: Path) -> None:
    assert command("report", own_artifact, "--json").json == {"report": str(own_artifact / "report.html")}


def test_quantize_dry_run_gives_the_plan(command: Command, quantize: list[str], tmp_path: Path) -> None:
    document = command(*quantize, "--output", tmp_path / "out", "--dry-run", "--json").json
    assert {"model", "scheme", "recipe", "targets", "output", "estimates", "steps", "notes"} <= document.keys()
    assert document["estimates"]["peak_memory_bytes"] > 0
    both = ["--target", "host-cpu", "--target", "generic-npu"]
    longer = command(*quantize, "--output", tmp_path / "out", "--dry-run", "--json", *both).json
    assert longer["estimates"]["seconds_on_two_cores"] > document["estimates"]["seconds_on_two_cores"] > 0


@pytest.mark.parametrize(
    ("scheme", "recipe", "expected", "scopes"),
    [
        ("w8a8", None, "learned", ["model"]),
        ("w4a8", None, "learned", ["block", "model"]),
        ("w4a16", None, "learned", ["block", "model"]),
        ("w8a8", "rotated", "rotated", []),
    ],
)
def test_the_default_recipe_and_its_stages_follow_the_scheme(
    command: Command,
    checkpoint: Path,
    tmp_path: Path,
    scheme: str,
    recipe: str | None,
    expected: str,
    scopes: list[str],
) -> None:
    arguments = ["--model", checkpoint, "--scheme", scheme, "--output", tmp_path / "out", "--dry-run", "--json"]
    plan = command("quantize", *arguments, *([] if recipe is None else ["--recipe", recipe])).json["recipe"]
    assert (plan["name"], [stage["scope"] for stage in plan["learn"]]) == (expected, scopes)


@pytest.mark.usefixtures("quick")
def test_quantize_gives_the_report(command: Command, quantize: list[str], tmp_path: Path) -> None:
    result = command(*quantize, "--output", tmp_path / "out", "--json")
    document = result.json
    assert result.code == 0
    assert document["output"] == str(tmp_path / "out")
    assert {"model", "scheme", "calibration", "targets", "stages", "sizes"} <= document.keys()


@pytest.mark.usefixtures("quick")
def test_export_gives_the_files(
    command: Command, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quick_backend import TARGET

    from mobileicsa import api

    monkeypatch.setattr(api, "find_target", lambda name: TARGET)
    document = command("export", artifact, "--target", "quick", "--output", tmp_path / "out", "--json").json
    assert document["output"] == str(tmp_path / "out")
    assert document["backends"]["quick"]["files"]["model.quick"]["bytes"] > 0


def noisy(action: Any) -> Any:
    """The function, which first prints as a library in Python, one in C and a child process would."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        print("noise of Python")
        print("noise of Python", file=sys.stderr)
        os.write(1, b"noise of C\n")
        os.system("echo noise of a child")
        return action(*arguments, **named)

    return wrapped


def test_what_libraries_print_stays_out_of_the_document(
    command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobileicsa.report.contents.read_manifest", noisy(manifest.read_manifest))
    result = command("inspect", artifact, "--json")
    assert result.json["folder"] == str(artifact)
    assert "noise" not in result.out + result.err


def test_debug_shows_on_standard_error_what_libraries_print(
    command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobileicsa.report.contents.read_manifest", noisy(manifest.read_manifest))
    result = command("inspect", artifact, "--json", "--debug")
    assert result.json["folder"] == str(artifact)
    assert "noise of C" in result.err
    assert "noise of a child" in result.err


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [(RuntimeError("boom\nline 2"), 1, "InternalError"), (DeviceError("unplugged"), 6, "DeviceError")],
)
def test_a_failure_is_one_document_too(
    command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, kind: str
) -> None:
    def fail(*arguments: Any) -> None:
        print("noise")
        raise error

    monkeypatch.setattr("mobileicsa.report.contents.read_manifest", fail)
    result = command("inspect", artifact, "--json")
    assert (result.code, result.err) == (code, "")
    assert set(result.json) == {"error"}
    assert (result.json["error"]["type"], result.json["error"]["exit_code"]) == (kind, code)
    assert "Traceback" in command("inspect", artifact, "--json", "--debug").err


def test_json_may_stand_before_the_commands_name(command: Command) -> None:
    assert "schemes" in command("--json", "schemes").json
    assert command("--json", "--version").json.keys() == {"version"}


def test_numbers_that_json_lacks_become_null(command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobileicsa.report.contents.contents", lambda *a, **n: {"x": float("nan"), "y": [float("inf")]})
    assert command("inspect", artifact, "--json").json == {"x": None, "y": [None]}
