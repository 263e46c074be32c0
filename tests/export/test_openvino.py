"""OpenVINO on the written QDQ models: the simulator's integers, in integer kernels; what is not is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mobileicsa_export.onnx import OnnxBackend
from mobileicsa_export.openvino import OpenvinoBackend
from tiny_frozen import CONTEXT, generate, target, tiny_frozen, tiny_spec

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.target import Target
from mobileicsa.program.backend import Written
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.simulator import SimulatorSession

pytestmark = pytest.mark.skipif(
    OpenvinoBackend().unavailable() is not None, reason=str(OpenvinoBackend().unavailable())
)
LAYERS = len(tiny_spec().layers)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write(frozen: FrozenModel, folder: Path, made_for: Target) -> Written:
    decoder = build_decoder(frozen, primitive=made_for.nonlinear == "primitive")
    return OpenvinoBackend().write(decoder, made_for, folder, {"context": CONTEXT})


def equal_share(frozen: FrozenModel, folder: Path, made_for: Target) -> float:
    decoder = build_decoder(frozen, primitive=made_for.nonlinear == "primitive")
    session = OpenvinoBackend().open(folder, decoder.spec, made_for, threads=1)
    got = generate(decoder, session.run)
    expected = generate(decoder, SimulatorSession(decoder, made_for).run)
    pairs = [(a, b) for (_, x), (_, y) in zip(expected, got, strict=True) for a, b in zip(x, y, strict=True)]
    assert {b.dtype for _, b in pairs} == {np.dtype(np.int8)}
    assert max(np.abs(a.astype(int) - b).max() for a, b in pairs) <= 1
    return float(np.mean([(a == b).mean() for a, b in pairs]))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_openvino_gives_the_simulators_integers_in_integer_kernels(scheme: str, tmp_path: Path) -> None:
    frozen = tiny_frozen(scheme)
    facts = write(frozen, tmp_path, target()).facts
    assert equal_share(frozen, tmp_path, target()) >= 0.99
    assert (facts["delegated_share"], facts["unsupported"]) == (1.0, [])
    # Per layer seven linears in integers, two products of activations in float; and the head, a transposed table.
    placed = OpenvinoBackend().placement(tmp_path, target())
    assert placed["products"] == {"integer": 7 * LAYERS + 1, "float": 2 * LAYERS}
    assert placed["fallbacks"] == []


def test_a_primitive_file_has_no_real_tensor_and_gives_the_simulators_integers(tmp_path: Path) -> None:
    frozen, made_for = tiny_frozen("w8a8"), target(nonlinear="primitive")
    assert write(frozen, tmp_path, made_for).facts["float_tensors"] == 0
    assert equal_share(frozen, tmp_path, made_for) >= 0.99


def test_float_products_are_named_with_the_reason(tmp_path: Path) -> None:
    # OpenVINO unpacks INT4 weights to float, and its own `runtimePrecision` does not say so.
    facts = write(tiny_frozen("w4a8"), tmp_path, target("int4")).facts
    assert facts["float_tensors"] > 0
    assert facts["delegated_share"] < 1.0
    (found,) = facts["unsupported"]
    assert found["op"] == "MatMul"
    assert "i4 weights" in found["reason"]
    assert f"({7 * LAYERS} nodes)" in found["reason"]
    fallbacks = OpenvinoBackend().placement(tmp_path, target("int4"))["fallbacks"]
    assert {f["node"] for f in fallbacks} >= {"layers.0.attn.q_proj/MatMul", "layers.1.mlp.down_proj/MatMul"}


def test_a_file_of_another_target_is_refused(tmp_path: Path) -> None:
    OnnxBackend().write(build_decoder(tiny_frozen("w8a8"), primitive=False), target(), tmp_path, {"context": CONTEXT})
    other = Target(name="other", description="", backends=("openvino",), context=CONTEXT, prefill_chunk=6)
    with pytest.raises(VerificationError, match="written for target test, expected other"):
        OpenvinoBackend().open(tmp_path, tiny_spec(), other)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "of_products"),
    [(np.int8, 0.0371, -17, set()), (np.int8, 0.0371, -17, {"scale"}), (np.int16, 0.00123, -3000, set())],
)
def test_a_quantize_node_rounds_as_the_simulator(
    dtype: type, scale: float, zero_point: int, of_products: set[str]
) -> None:
    from mobileicsa_export.openvino_reading import read_core
    from mobileicsa_export.openvino_session import configuration

    kind, limits = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), np.iinfo(dtype)
    x = np.random.default_rng(3).normal(0, scale * limits.max / 2, (1, 100_000)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"])],
        "quantize",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("q", kind, x.shape)],
        [
            onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [scale]),
            onnx.helper.make_tensor("zero_point", kind, [], [zero_point]),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    core = read_core(of_products)
    read = core.read_model(model.SerializeToString())
    got = core.compile_model(read, "CPU", configuration(threads=1, sums_exact=True))([x])[0]
    q = np.rint(x * np.float32(1.0 / float(np.float32(scale)))) + zero_point
    np.testing.assert_array_equal(got, np.clip(q, limits.min, limits.max))
