"""The arm64 check: its runner replays golden calls exactly, and a skipped check says why. No emulator is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from mobileicsa_export.onnx import MODEL_FILES, OnnxBackend
from tiny_frozen import CHUNK, CONTEXT, VOCAB, target, tiny_frozen

from benchmarks.arm64 import root, run
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.simulator import SimulatorSession


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("arm64")
    decoder = build_decoder(tiny_frozen("w8a8"), primitive=False)
    OnnxBackend().write(decoder, target(), folder / "onnx", {"context": CONTEXT})
    spec, random = decoder.spec, np.random.default_rng(0)
    session = SimulatorSession(decoder, target())
    cache = [np.zeros((1, spec.num_kv_heads, CONTEXT, spec.head_dim), np.int8) for _ in range(2 * spec.num_layers)]
    calls = {f"prefix.{index}": rows[:, :, :0] for index, rows in enumerate(cache)}
    position = 0
    for call, (method, length) in enumerate((("prefill", CHUNK), ("decode", 1))):
        ids = random.integers(0, VOCAB, (1, length))
        _, rows = session.run(method, ids, position, cache)
        calls |= {f"{call}.token_ids": ids[0], f"{call}.position": np.array([position]), f"{call}.rows": np.stack(rows)}
        for slots, new in zip(cache, rows, strict=True):
            slots[:, :, position : position + length] = new
        position += length
    calls |= {"cache_shape": np.array(cache[0].shape), "chunk": np.array(CHUNK)}
    np.savez(folder / "calls.npz", allow_pickle=False, **calls)
    return folder


def test_the_runner_gives_the_golden_integers_of_the_exact_form(written: Path, tmp_path: Path) -> None:
    exact = run._exact_form(written / "onnx", tmp_path / "exact")
    done = subprocess.run(
        [sys.executable, str(run.RUNNER), "onnx", str(exact), str(written / "calls.npz"), str(tmp_path / "o")]
    )
    assert done.returncode == 0
    golden, got = dict(np.load(written / "calls.npz")), dict(np.load(tmp_path / "o.npz"))
    steps = run._steps(got, golden)
    assert (steps["different"], steps["max_steps"]) == (0, 0)
    assert steps["integers"] == golden["0.rows"].size + golden["1.rows"].size
    got["1.rows"][0, 0, 0, 0, 0] += 2
    assert run._steps(got, golden)["different"] == 1


def test_the_runner_replays_on_executorch_too(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    from mobileicsa_export.executorch import ExecutorchBackend

    decoder = build_decoder(tiny_frozen("w8a8"), primitive=False)
    ExecutorchBackend().write(decoder, target(), tmp_path / "pte", {"eos_ids": [2], "prefix_ids": []})
    line = [sys.executable, str(run.RUNNER), "executorch", str(tmp_path / "pte"), str(written / "calls.npz")]
    assert subprocess.run([*line, str(tmp_path / "o")]).returncode == 0
    steps = run._steps(dict(np.load(tmp_path / "o.npz")), dict(np.load(written / "calls.npz")))
    assert steps["equal_share"] > 0.9
    assert steps["max_steps"] <= 2


def test_the_exact_form_is_another_graph_than_the_written_one(written: Path, tmp_path: Path) -> None:
    exact = run._exact_form(written / "onnx", tmp_path / "exact")
    wide = [v for node in ir.load(exact / MODEL_FILES["decode"]).graph for v in node.outputs if node.op_type == "Cast"]
    assert wide


def test_without_an_emulator_the_check_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert root.EMULATOR in str(root.missing())
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path), "--work", str(tmp_path)])
    assert run.main() == run.SKIPPED
    assert "skipped: " in capsys.readouterr().out
