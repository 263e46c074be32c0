"""Qualcomm's offline compiler and HTP emulator on the written models: whole, in integers, near the simulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mobileicsa_export.qnn_graph as qnn_graph
import numpy as np
import onnxruntime as ort
import pytest
import torch
from qnn_models import METADATA, htp_target, int4_product
from tiny_frozen import generate, tiny_frozen

from mobileicsa.core.errors import Unsupported, VerificationError
from mobileicsa.core.spec import LayerSpec
from mobileicsa.core.target import Target
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.simulator import SimulatorSession

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed: pip install 'mobileicsa[onnx,qnn]'")

from mobileicsa_export.onnx import OnnxBackend
from mobileicsa_export.qnn import CONTEXT_FILES, SHARED_FOLDER, QnnHtpBackend
from mobileicsa_export.qnn_compile import start

SCHEMES = ("w8a8", "w4a8", "w4a16")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=SCHEMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenModel, Path, Any]:
    frozen = tiny_frozen(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    written = QnnHtpBackend().write(build_decoder(frozen, primitive=True), htp_target(), folder, METADATA)
    return frozen, folder, written


def test_the_whole_program_runs_on_the_htp_without_a_real_valued_tensor(case: tuple[FrozenModel, Path, Any]) -> None:
    _, folder, written = case
    facts = written.facts
    assert (facts["delegated_share"], facts["float_tensors"], facts["unsupported"]) == (1.0, 0, [])
    assert not any(name.startswith("float") for types in facts["tensor_types"].values() for name in types)
    found = QnnHtpBackend().placement(folder, htp_target())
    assert found["fallbacks"] == []
    assert found["float"] == found["outside"] == 0
    assert found["products"] == {"integer": 19, "float": 0}


def test_the_emulators_first_rows_are_the_simulators(case: tuple[FrozenModel, Path, Any]) -> None:
    frozen, folder, _ = case
    decoder, target = build_decoder(frozen, primitive=True), htp_target()
    session = QnnHtpBackend().open(folder, decoder.spec, target)
    found = generate(decoder, session.run)
    expected = generate(build_decoder(frozen, primitive=True), SimulatorSession(decoder, target).run)
    (_, rows), (_, theirs) = found[0], expected[0]
    # Behind the first layer two runs with other roundings part by some steps; before it they have not met a product.
    for a, b in zip(rows[:2], theirs[:2], strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2
        assert (a == b).mean() >= 0.85
    logits, wanted = np.concatenate([x.ravel() for x, _ in found]), np.concatenate([x.ravel() for x, _ in expected])
    assert np.corrcoef(logits, wanted)[0, 1] >= 0.95


def test_both_methods_share_one_binary(case: tuple[FrozenModel, Path, Any]) -> None:
    _, folder, written = case
    binaries = sorted((folder / SHARED_FOLDER).glob("*.bin"))
    assert len(binaries) == 1
    single = [folder / f"{Path(file).stem}_qnn.bin" for file in CONTEXT_FILES.values()]
    assert binaries[0].stat().st_size < sum(path.stat().st_size for path in single)
    assert {folder / SHARED_FOLDER / file for file in CONTEXT_FILES.values()} < set(written.files)


COMPILE = """
import sys
from pathlib import Path
from mobileicsa_export.qnn import _lowered
from mobileicsa_export.qnn_compile import compile_context
from qnn_models import htp_target

place = Path(sys.argv[2])
facts = _lowered(Path(sys.argv[1]), place / "htp", htp_target())["decode"]
compile_context(place / "htp" / "model.onnx", place / "decode_ctx.onnx", htp_target(), facts)
"""


def test_two_runs_that_compile_in_two_places_write_the_same_bytes(tmp_path: Path) -> None:
    """Runs, for within a process the libraries go on numbering operators where the compilation before ended."""
    decoder = build_decoder(tiny_frozen("w8a8", layers=(LayerSpec(),)), primitive=True)
    OnnxBackend().write(decoder, htp_target(), tmp_path / "portable", METADATA)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    made = []
    for place in (tmp_path / "one", tmp_path / "another" / "place"):
        place.mkdir(parents=True)
        command = [sys.executable, "-c", COMPILE, str(tmp_path / "portable"), str(place)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, timeout=300)
        made.append({path.name: path.read_bytes() for path in place.iterdir() if path.is_file()})
    assert made[0].keys() == made[1].keys() == {"decode_ctx.onnx", "decode_ctx_qnn.bin"}
    assert made[0] == made[1]


def test_flipped_weights_which_the_emulator_computes_with_are_a_verification_error(
    case: tuple[FrozenModel, Path, Any], tmp_path: Path
) -> None:
    frozen, folder, _ = case
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    binary = copy / "decode_ctx_qnn.bin"
    data = bytearray(binary.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    binary.write_bytes(data)
    with pytest.raises(VerificationError, match=r"decode_ctx_qnn\.bin") as caught:
        QnnHtpBackend().open(copy, frozen.plan.spec, htp_target())
    assert caught.value.exit_code == 5


def test_files_of_another_target_or_method_are_refused(case: tuple[FrozenModel, Path, Any], tmp_path: Path) -> None:
    frozen, folder, _ = case
    spec = frozen.plan.spec
    with pytest.raises(VerificationError, match="target"):
        QnnHtpBackend().open(folder, spec, htp_target(arch=73, soc=43))
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / CONTEXT_FILES["decode"]).write_bytes((folder / CONTEXT_FILES["prefill"]).read_bytes())
    with pytest.raises(VerificationError, match="method"):
        QnnHtpBackend().open(tmp_path, spec, htp_target())


def test_operators_that_the_compiler_silently_makes_float_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn_graph, "_divide_one", lambda graph: None)
    monkeypatch.setattr(qnn_graph, "one_width", _leave_products_alone)
    decoder = build_decoder(tiny_frozen("w8a8", layers=(LayerSpec(),)), primitive=True)
    facts = QnnHtpBackend().write(decoder, htp_target(), tmp_path, METADATA).facts
    assert facts["float_tensors"] > 0
    assert "ElementWiseMultiply" in {row["op"] for row in facts["unsupported"]}
    assert QnnHtpBackend().placement(tmp_path, htp_target())["fallbacks"]


def test_an_operator_that_the_compiler_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn_graph, "one_width", lambda graph: None)
    decoder = build_decoder(tiny_frozen("w8a8", layers=(LayerSpec(),)), primitive=True)
    with pytest.raises(Unsupported, match=r"layers\.0\.attn\.o_proj"):
        QnnHtpBackend().write(decoder, htp_target(), tmp_path, METADATA)


def test_asymmetric_four_bit_weights_are_wrong_on_the_emulator_without_an_error(tmp_path: Path) -> None:
    """Why `check_int4` refuses them: if this fails, the compiler has learned them and the check may go."""
    different = {}
    for zero_point in (0, -1):
        path = tmp_path / f"{zero_point}.onnx"
        feed = int4_product(path, zero_point)
        (found,) = start(path, htp_target(), {}, {}).run(None, feed)
        (expected,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)
        different[zero_point] = np.abs(found.astype(int) - expected).max()
    assert different[0] <= 1
    assert different[-1] > 50


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "soc"), [(73, 43), (79, 69), (81, 87)])
def test_other_generations_compile_and_run(arch: int, soc: int, tmp_path: Path) -> None:
    target: Target = htp_target(arch, soc)
    decoder = build_decoder(tiny_frozen("w4a8", layers=(LayerSpec(),)), primitive=True)
    facts = QnnHtpBackend().write(decoder, target, tmp_path, METADATA).facts
    assert (facts["delegated_share"], facts["float_tensors"]) == (1.0, 0)
    generate(decoder, QnnHtpBackend().open(tmp_path, decoder.spec, target).run)


def _leave_products_alone(graph: Any) -> None:
    """One width for products with weights, which the compiler would refuse, for nothing else."""
    from mobileicsa_export.qnn_widths import _one_width

    for node in list(graph):
        if node.op_type == "MatMul":
            _one_width(graph, node)
