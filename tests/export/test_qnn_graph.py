"""The graph that Qualcomm's HTP gets: the portable one's integers, one width an operator, symmetric 4-bit weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from mobileicsa_export.onnx import MODEL_FILES
from mobileicsa_export.onnx_load import load_graph
from mobileicsa_export.onnx_unencoded import unencoded
from mobileicsa_export.qnn_check import check_int4, check_limits
from mobileicsa_export.qnn_graph import logits_encoding, to_htp_form
from mobileicsa_export.qnn_moves import is_per_tensor
from mobileicsa_export.qnn_widths import COMPUTES
from qnn_models import htp_target, int4_product, portable
from tiny_frozen import CHUNK, CONTEXT, VOCAB, tiny_frozen

from mobileicsa.core.errors import Unsupported
from mobileicsa.core.spec import LayerSpec

CASES = {
    "w8a8": {},
    "w4a8": {},
    "w4a16": {},
    "w8a8-bias": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "w8a8-window-norms": {"layers": (LayerSpec(), LayerSpec(sliding_window=4)), "qk_norm": "head"},
}
WIDTHS = {ir.DataType.UINT8: 8, ir.DataType.UINT16: 16}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=sorted(CASES))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheme = request.param.split("-")[0]
    return portable(tiny_frozen(scheme, **CASES[request.param]), tmp_path_factory.mktemp(request.param))


def lowered(files: Path, method: str) -> ir.Model:
    model = load_graph(files / MODEL_FILES[method])
    to_htp_form(model)
    return model


def run(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


@pytest.mark.parametrize("method", ["prefill", "decode"])
def test_the_htp_form_gives_the_portable_graphs_integers(files: Path, method: str) -> None:
    model = lowered(files, method)
    ir.save(model, files / "htp.onnx")
    random = np.random.default_rng(4)
    length = CHUNK if method == "prefill" else 1
    feed = {"input_ids": random.integers(0, VOCAB, (1, length)), "position": np.array([9])}
    past = {v.name: random.integers(-40, 40, v.shape.numpy()).astype(np.int8) for v in list(model.graph.inputs)[2:]}
    logits, *rows = run(files / MODEL_FILES[method], feed | past)
    found, *found_rows = run(files / "htp.onnx", feed | {k: v.view(np.uint8) ^ 0x80 for k, v in past.items()})
    assert past[next(iter(past))].shape[2] == CONTEXT
    for ours, theirs in zip(found_rows, rows, strict=True):
        np.testing.assert_array_equal(ours ^ 0x80, theirs.view(np.uint8))
    scale, zero = logits_encoding(model)
    np.testing.assert_array_equal((found.astype(np.int32) - zero).astype(np.float32) * np.float32(scale), logits)


def test_every_operator_has_encodings_of_one_width(files: Path) -> None:
    graph = lowered(files, "decode").graph
    assert unencoded(graph) == []
    assert "Reciprocal" not in {node.op_type for node in graph}
    for node in graph:
        if node.op_type not in COMPUTES:
            continue
        sources = [value.producer() for value in node.inputs]
        widths = [WIDTHS[s.inputs[2].dtype] for s in sources if s is not None and is_per_tensor(s)]
        widths += [WIDTHS[u.node.inputs[2].dtype] for u in node.outputs[0].uses() if is_per_tensor(u.node)]
        # Products of activations have a kernel of 16 by 8 bits.
        pair = node.op_type == "MatMul" and all(s is not None and is_per_tensor(s) for s in sources)
        assert len(set(widths[:1] + widths[2:] if pair else widths)) <= 1, node.name


def test_four_bit_weights_with_a_zero_point_are_refused_with_the_reason(tmp_path: Path) -> None:
    int4_product(tmp_path / "symmetric.onnx", 0)
    check_int4(ir.load(tmp_path / "symmetric.onnx").graph)
    int4_product(tmp_path / "asymmetric.onnx", -1)
    with pytest.raises(Unsupported, match="zero point 0") as caught:
        check_int4(ir.load(tmp_path / "asymmetric.onnx").graph)
    assert "w_dq" in caught.value.message


def test_a_graph_above_the_memory_ceiling_is_refused(tmp_path: Path) -> None:
    weights = ir.tensor(np.zeros((1024, 1025), np.int8))
    value = ir.Value(name="w", const_value=weights, type=ir.TensorType(weights.dtype), shape=ir.Shape(weights.shape))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    with pytest.raises(Unsupported, match="1048576"):
        check_limits(model, htp_target(max_bytes=1 << 20))
    check_limits(model, htp_target(max_bytes=1 << 21))
