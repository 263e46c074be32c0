"""The host bench on a tiny artifact: figures, the interleaved float baseline, and what goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_artifact import TEXT

from mobileicsa.artifact.model import FloatModel, QuantizedModel
from mobileicsa.bench.baseline import float_decoder, write_float
from mobileicsa.bench.child import Child
from mobileicsa.bench.figures import Runs, percentile, ratios
from mobileicsa.bench.host import bench
from mobileicsa.bench.rapl import POWERCAP
from mobileicsa.core.errors import EnvironmentFault, InputError, UsageError, VerificationError
from mobileicsa.program.backend import find_backend

FIGURES = (
    "load_ms",
    "first_token_ms",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "peak_rss_bytes",
    "bytes_per_token",
    "file_bytes",
)


@pytest.fixture(scope="module")
def result(artifact: Path) -> dict[str, Any]:
    if find_backend("onnx").unavailable():
        pytest.skip("needs the extra mobileicsa[onnx]")
    return bench(
        artifact, backends=["onnx"], baseline_float=True, prompt_tokens=8, generate_tokens=4, repeat=2, threads=1
    )


def test_every_figure_is_measured_for_the_back_end_and_its_float_baseline(result: dict[str, Any]) -> None:
    for row in (result, result["backends"]["onnx"], result["backends"]["onnx"]["float32"]):
        assert all(row[name] > 0 for name in FIGURES)
    assert result["backend"] == "onnx"
    assert result["repeat"] == 2


def test_energy_is_absent_with_a_reason_not_estimated(result: dict[str, Any]) -> None:
    if POWERCAP.is_dir():
        pytest.skip("this machine may have energy counters")
    assert result["energy_mj_per_token"] is None
    assert "no RAPL counters" in result["energy_source"]


def test_each_contender_has_a_process_of_its_own(result: dict[str, Any]) -> None:
    # Importing torch alone takes more than this; the test process itself holds far more.
    assert 50e6 < result["peak_rss_bytes"] < 2e9
    row = result["backends"]["onnx"]
    assert row["peak_rss_bytes"] != row["float32"]["peak_rss_bytes"]


def test_a_decode_step_reads_the_weights_file_and_the_cache(result: dict[str, Any], artifact: Path) -> None:
    cache = 2 * 2 * 2 * 8 * 96  # keys and values, layers, heads, head size, slots
    # Encodings are for compilers, no step reads them.
    read = [path for path in (artifact / "onnx").iterdir() if path.suffix != ".json"]
    largest = max(path.stat().st_size for path in read)
    assert result["bytes_per_token"] == largest + cache
    assert result["backends"]["onnx"]["float32"]["bytes_per_token"] > largest + 4 * cache


def test_ratios_compare_turns_that_ran_beside_each_other(result: dict[str, Any]) -> None:
    low, high = result["backends"]["onnx"]["ratio_to_float32"]["decode_tokens_per_s_range"]
    assert 0 < low <= result["ratio_to_float32"]["decode_tokens_per_s"] <= high


def made(first_token_ms: float, *step_ms: float) -> dict[str, Any]:
    return {"first_token_ms": first_token_ms, "step_ms": list(step_ms), "peak_rss_bytes": 10}


def test_figures_are_medians_over_runs() -> None:
    runs = Runs(
        opened={"first_load_ms": 9.0, "rss_before_load_bytes": 4},
        prompt_tokens=64,
        turns=[made(100, 10, 10), made(200, 10, 30), made(400, 5, 5)],
        loads=[3.0, 9.0, 2.0],
    )
    summary = runs.summary()
    assert summary["load_ms"] == 3
    assert summary["load_ms_range"] == [2, 9]
    assert summary["first_token_ms"] == 200
    assert summary["first_token_ms_range"] == [100, 400]
    assert summary["prefill_tokens_per_s"] == 64 / 0.2
    assert summary["decode_tokens_per_s"] == 100
    assert summary["decode_tokens_per_s_range"] == [50, 200]
    assert summary["decode_ms_per_token_p90"] == 30
    assert summary["model_rss_bytes"] == 6
    slower = Runs(opened=runs.opened, prompt_tokens=64, turns=[made(200, 20), made(200, 40), made(800, 20)])
    assert ratios(runs, slower)["decode_tokens_per_s"] == 2
    assert ratios(runs, slower)["prefill_tokens_per_s_range"] == [1, 2]


def test_a_percentile_is_a_measured_value() -> None:
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], 90) == 5.0
    assert percentile([float(i) for i in range(1, 101)], 90) == 90.0


def test_the_float_baseline_computes_what_the_checkpoint_computes(artifact: Path) -> None:
    decoder = float_decoder(QuantizedModel.from_pretrained(artifact).frozen)
    model = FloatModel.from_pretrained(artifact.parent / "checkpoint")
    ids = torch.tensor([[1, *model.tokenizer.encode(TEXT)[:40]]])
    with torch.no_grad():
        ours, original = decoder(ids)[0], model.decoder(ids)[0]
    assert float((ours - original).norm() / original.norm()) < 0.1


def test_a_finished_float_export_is_used_again(artifact: Path, tmp_path: Path) -> None:
    model = QuantizedModel.from_pretrained(artifact)
    back_end = find_backend("onnx")
    folder = write_float(model.frozen, model.target, back_end, tmp_path)
    marker = folder / "model.onnx"
    marker.write_bytes(b"kept")
    assert write_float(model.frozen, model.target, back_end, tmp_path) == folder
    assert marker.read_bytes() == b"kept"
    (folder / "done.json").unlink()
    write_float(model.frozen, model.target, back_end, tmp_path)
    assert marker.read_bytes() != b"kept"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeat": 0}, "--repeat 0"),
        ({"generate_tokens": 0}, "--generate-tokens 0"),
        ({"prompt_tokens": 90, "generate_tokens": 90}, "exceed the 9"),
        ({"threads": 0}, "--threads 0"),
    ],
)
def test_impossible_sizes_are_usage_errors(artifact: Path, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench(artifact, **wrong)


def test_an_unknown_back_end_is_named_with_those_there_are(artifact: Path) -> None:
    with pytest.raises(InputError, match="tflite: not in this artifact; it has onnx, executorch"):
        bench(artifact, backends=["tflite"])


def test_a_damaged_export_is_refused_before_a_process_starts(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(artifact, folder)
    data = folder / "onnx" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(VerificationError, match=r"onnx/model\.onnx\.data"):
        bench(folder, backends=["onnx"])


def test_a_worker_that_is_killed_is_an_error_that_says_so() -> None:
    with Child("onnx") as child:
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(EnvironmentFault, match="onnx: the bench process was killed by signal 9 during run"):
            child.ask("run", prompt_tokens=1, generate_tokens=1)
    assert child._process.returncode == -signal.SIGKILL


def test_a_worker_hands_over_its_error_with_type_and_hint(artifact: Path) -> None:
    spec = QuantizedModel.from_pretrained(artifact).plan.spec.to_json()
    with Child("onnx") as child, pytest.raises(InputError, match="onnx: target bench: prefill_chunk"):
        child.ask(
            "open",
            folder="nowhere",
            backend="onnx",
            spec=spec,
            target={"name": "bench", "description": "", "backends": [], "context": 1, "prefill_chunk": 4},
            prefix_length=0,
            dtype="int8",
            threads=1,
        )
