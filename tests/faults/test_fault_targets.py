"""Torture list, cases 55 to 57: artifacts for something else, and operators that fall back to float."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from artifacts import command, sign

from mobileicsa.artifact import layout
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.bench.host import bench
from mobileicsa.core.errors import VerificationError
from mobileicsa.program import backend

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


INT4_IN_FLOAT = "ONNX Runtime multiplies its weight in float on this CPU"


@pytest.fixture
def npu(other_artifact: Path, tmp_path: Path) -> Path:
    """For the target generic-npu, which wants every operator in integers and is exported to ONNX alone."""
    return Path(shutil.copytree(other_artifact, tmp_path / "npu"))


def run(capfd: Capture, folder: Path, backend: str) -> tuple[int, str]:
    ran = command(capfd, "run", str(folder), "--backend", backend, "--prompt", "a", "--max-new-tokens", "1")
    return ran.code, str(ran.document.get("error", {}).get("message"))


def placement(folder: Path) -> dict[str, Any]:
    """As the build recorded it."""
    report = json.loads((folder / layout.REPORT).read_text())
    found: dict[str, Any] = report["targets"]["generic-npu"]["onnx"]["facts"]["placement"]
    return found


def test_fault_55_a_back_end_that_was_not_exported_is_named_with_those_that_were(npu: Path) -> None:
    """Where nothing may be lowered first, as the command line does."""
    with pytest.raises(VerificationError, match="was exported for onnx, not for executorch"):
        QuantizedModel.from_pretrained(npu, backend="executorch")


def test_fault_55_files_for_another_target_do_not_run(folder: Path, npu: Path, capfd: Capture) -> None:
    shutil.rmtree(folder / "onnx")
    shutil.copytree(npu / "onnx", folder / "onnx")
    sign(folder)
    code, message = run(capfd, folder, "onnx")
    assert code == 5
    assert "model.onnx: was written for target generic-npu, expected host-cpu" in message


def test_fault_55_a_plan_of_another_scheme_does_not_run(folder: Path, npu: Path, capfd: Capture) -> None:
    for name in (layout.PLAN, layout.WEIGHTS):
        shutil.copy(npu / name, folder / name)
    sign(folder)
    code, message = run(capfd, folder, "onnx")
    assert code == 5
    assert "manifest.json says scheme w8a8, quant_plan.json w4a8" in message


@pytest.mark.parametrize("change", [{"opset": 99}, {"ir_version": 99}])
def test_fault_55_a_file_newer_than_the_runtime_does_not_run(
    folder: Path, capfd: Capture, change: dict[str, int]
) -> None:
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.opset_import[0].version = change.get("opset", model.opset_import[0].version)
    model.ir_version = change.get("ir_version", model.ir_version)
    path.write_bytes(model.SerializeToString())
    sign(folder)
    code, message = run(capfd, folder, "onnx")
    assert code == 5
    assert "model.onnx: ONNX Runtime cannot load it" in message


def test_fault_56_float_operators_of_an_integer_target_are_counted_with_reasons(npu: Path) -> None:
    found = placement(npu)["fallbacks"]
    assert len({f["node"] for f in found}) == len(found)
    reasons = {f["node"]: f["reason"] for f in found}
    # The file leaves nothing in float (test_onnx_unencoded.py); this runtime has no kernel for its int4 weights.
    assert reasons["layers.0.attn.q_proj/MatMul"] == INT4_IN_FLOAT
    assert set(reasons.values()) == {INT4_IN_FLOAT}


def test_fault_56_inspect_tells_the_same_counts_as_the_report(npu: Path, capfd: Capture) -> None:
    ran = command(capfd, "inspect", str(npu))
    assert ran.document["targets"]["generic-npu"]["onnx"]["facts"]["placement"] == placement(npu)


def test_fault_56_a_strict_verify_lists_what_the_target_does_not_declare(npu: Path, capfd: Capture) -> None:
    relaxed = command(capfd, "verify", str(npu), "--no-save", "--no-greedy", "--backend", "onnx")
    assert relaxed.code == 0
    strict = command(capfd, "verify", str(npu), "--no-save", "--no-greedy", "--backend", "onnx", "--strict")
    assert strict.code == 5
    (problem,) = strict.document["problems"]
    count = len(placement(npu)["fallbacks"])
    assert problem.startswith(f"onnx: {count} operators run in float or outside, which target generic-npu does not")
    assert f"layers.0.attn.q_proj/MatMul ({INT4_IN_FLOAT})" in problem


def test_fault_56_declared_float_regions_pass_a_strict_verify(artifact: Path, capfd: Capture) -> None:
    ran = command(capfd, "verify", str(artifact), "--no-save", "--no-greedy", "--strict")
    assert ran.code == 0
    for name in ("onnx", "executorch"):
        found = ran.document["backends"][name]["placement"]
        assert found["float"] > 0
        assert found["fallbacks"] == []


def test_fault_57_bench_refuses_what_falls_back_to_float(npu: Path) -> None:
    with pytest.raises(VerificationError, match=r"layers\.\d\.|inputs/") as caught:
        bench(npu, prompt_tokens=2, generate_tokens=2, repeat=1, threads=1)
    assert caught.value.exit_code == 5
    assert "--allow-fallback" in str(caught.value.hint)


def test_fault_57_an_allowed_fallback_is_listed_beside_the_figures(npu: Path) -> None:
    made = bench(npu, prompt_tokens=2, generate_tokens=2, repeat=1, threads=1, allow_fallback=True)
    row = made["backends"]["onnx"]
    assert row["decode_tokens_per_s"] > 0
    weights = [f["node"] for f in row["placement"]["fallbacks"] if "multiplies its weight in float" in f["reason"]]
    # Packed 4-bit weights have no integer kernel on this CPU; the head has 8 bits and one.
    assert len(weights) == 14


class _Foreign:
    """An entry point of another package, broken."""

    name = "foreign"

    def load(self) -> type[Any]:
        raise ImportError("libforeign.so.1: no such file")


def test_a_back_end_that_cannot_be_imported_does_not_stop_the_others(
    npu: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = backend.entry_points
    monkeypatch.setattr(backend, "entry_points", lambda group: [*found(group=group), _Foreign()])
    assert run(capfd, npu, "onnx")[0] == 0
    assert command(capfd, "doctor").code == 0
    ran = command(capfd, "verify", str(npu), "--backend", "foreign", "--no-save")
    assert ran.code == 4
    assert "libforeign.so.1" in ran.document["backends"]["foreign"]["skipped"]
