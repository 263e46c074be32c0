"""The speed benchmark's parts: the race, the scores, the front, the random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_artifact import TEXT

from benchmarks.speed import curves
from benchmarks.speed.contenders import Contender, Setting, prepare, runtime_files
from benchmarks.speed.curves import Point, curve
from benchmarks.speed.engine import open_engine
from benchmarks.speed.figure import draw, front
from benchmarks.speed.llama_cpp import load_libraries
from benchmarks.speed.run import _same_tokens, race, score
from mobileicsa.artifact.exported import TARGET_FILE
from mobileicsa.artifact.manifest import read_manifest
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.evaluate.perplexity import evaluate
from mobileicsa.io.json_file import write_json

VOCAB, WINDOW = 259, 32


@pytest.fixture(scope="module")
def contenders(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Contender]:
    """The tiny artifact on ONNX Runtime, its checkpoint in PyTorch, and one that cannot open."""
    exported = tmp_path_factory.mktemp("exported")
    manifest = read_manifest(artifact)
    write_json(exported / TARGET_FILE, manifest["targets"][manifest["default_target"]])
    (exported / "onnx").symlink_to(artifact / "onnx", target_is_directory=True)
    files = runtime_files(exported / "onnx")
    ours: dict[str, Any] = {"artifact": str(artifact), "exported": str(exported), "backend": "onnx", "threads": 1}
    model = str(artifact.parent / "checkpoint")
    absent = {"folder": "nowhere", "tokenizer": str(artifact), "bos_id": 1, "context": 64, "threads": 1}
    return [
        Contender("ours w8a8 onnx", "ours", ours, files),
        Contender("torch float32", "torch", {"model": model, "threads": 1}, ()),
        Contender("genai int4", "genai", absent, ()),
    ]


@pytest.fixture(scope="module")
def timed(contenders: list[Contender]) -> dict[str, dict[str, Any]]:
    return race(contenders, [4, 8], 3, 2, VOCAB)


def test_every_contender_runs_every_prompt_length_and_who_cannot_says_why(timed: dict[str, dict[str, Any]]) -> None:
    for name in ("ours w8a8 onnx", "torch float32"):
        assert set(timed[name]) == {"4", "8"}
        assert all(row["decode_tokens_per_s"] > 0 and row["load_ms"] > 0 for row in timed[name].values())
    assert timed["genai int4"]["failed"]


def test_a_score_is_that_of_evaluate(artifact: Path, contenders: list[Contender]) -> None:
    model = QuantizedModel.from_pretrained(artifact, backend="onnx", threads=1)
    expected = evaluate(model, TEXT, window=WINDOW, max_windows=2)
    ours, floating = (score(contender, TEXT, 2, window=WINDOW) for contender in contenders[:2])
    assert ours["perplexity"] == expected["perplexity"]
    assert ours["tokens"] == floating["tokens"] == expected["tokens"]


def test_perplexities_of_different_tokens_do_not_stand_side_by_side() -> None:
    _same_tokens([{"tokens": 5}, {"tokens": 5}, {}])
    with pytest.raises(SystemExit, match="side by side"):
        _same_tokens([{"tokens": 5}, {"tokens": 6}])


def test_the_front_holds_what_no_other_beats() -> None:
    points = {"fast": (9.0, 30.0), "exact": (2.0, 20.0), "beaten": (2.0, 25.0), "between": (5.0, 24.0)}
    assert front(points) == ["exact", "between", "fast"]


def test_the_figure_shows_every_scored_contender(timed: dict[str, dict[str, Any]]) -> None:
    rows = [
        {"name": name, "file_bytes": 1_000_000, "perplexity": 10.0 + i, "speed": timed[name]}
        for i, name in enumerate(("ours w8a8 onnx", "torch float32"))
    ]
    figure = draw({"model": "tiny", "threads": 1, "rows": rows})
    assert figure == draw({"model": "tiny", "threads": 1, "rows": rows})
    assert "prompt of 8 tokens" in figure


def test_groups_that_cannot_take_part_are_named_with_the_reason(artifact: Path, tmp_path: Path) -> None:
    setting = Setting(tmp_path, str(artifact.parent / "checkpoint"), {"w8a8": artifact}, 96, 1, None)
    found, skipped = prepare(setting, ["llama.cpp", "torch float32"])
    assert [one.name for one in found] == ["torch float32"]
    assert "libraries" in skipped["llama.cpp"]


def test_without_libraries_llama_cpp_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no libllama") as found:
        load_libraries(tmp_path)
    assert "@node-llama-cpp/linux-x64" in (found.value.hint or "")


def test_a_curve_has_a_point_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "BACKENDS", ("onnx",))
    points = [Point("w8a8", 64, 96), Point("w8a8", 64, 128)]
    rows = curve(points, tmp_path, threads=1, repeat=1, prompt=4, generate=2, layers=1)
    assert [row["context"] for row in rows] == [96, 128]
    assert all(row["prefill_tokens_per_s"] > 0 for row in rows)


def test_an_engine_whose_runtime_is_missing_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_genai", None)
    settings = {"folder": "nowhere", "tokenizer": ".", "bos_id": 1, "context": 64, "threads": 1}
    with pytest.raises(EnvironmentFault):
        open_engine("genai", settings)
