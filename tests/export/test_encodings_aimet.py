"""AIMET's own reader on our encodings: with them it quantises the float twin of model.onnx to the same integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from mobileicsa_export.encodings import FILES
from mobileicsa_export.onnx import OnnxBackend
from tiny_frozen import CONTEXT, VOCAB, target, tiny_frozen

from mobileicsa.program.frozen import FrozenModel, build_decoder

# `pip install --no-deps aimet-onnx` and what it imports; not a dependency of ours.
quantsim = pytest.importorskip("aimet_onnx.quantsim", exc_type=ImportError)


@pytest.fixture(scope="module")
def frozen() -> FrozenModel:
    torch.set_num_threads(1)
    return tiny_frozen("w8a8", qkv_bias=True, tied_head=False)


@pytest.fixture(scope="module")
def folder(frozen: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aimet")
    OnnxBackend().write(build_decoder(frozen, primitive=False), target(), folder, {"context": CONTEXT})
    return folder


def float_twin(path: Path) -> ir.Model:
    """The model without Q and DQ, all its tensors by their names; integers of DQ are real numbers, caches too."""
    model = ir.external_data.load_to_model(ir.load(path))
    graph = model.graph
    for node in list(graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        stored = node.inputs[0]
        if stored.is_initializer():
            scale, axis = node.inputs[1].const_value.numpy(), node.attributes.get("axis")
            shape = [1] * len(stored.shape)
            if scale.ndim:
                shape[axis.as_int() if axis is not None else 0] = -1
            stored.const_value = ir.tensor(stored.const_value.numpy().astype(np.float32) * scale.reshape(shape))
        same = ir.node("Identity", [stored], name=node.name)
        name = node.outputs[0].name
        graph.insert_before(node, same)
        node.outputs[0].replace_all_uses_with(same.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        same.outputs[0].name = name
    unused = [value.name for value in graph.initializers.values() if not value.uses()]
    for name in unused:
        del graph.initializers[name]
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        if value.const_value is not None:
            value.dtype = value.const_value.dtype
        elif value.dtype == ir.DataType.INT8:
            value.dtype = ir.DataType.FLOAT
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    return model


def run(model: bytes | str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def parsed(folder: Path, form: str) -> dict[str, Any]:
    data = json.loads((folder / FILES[form]).read_text(encoding="utf-8"))
    sections = [section for name, section in data.items() if name != "version"]
    pairs = [pair for s in sections for pair in (s.items() if isinstance(s, dict) else ((e["name"], e) for e in s))]
    return {name: quantsim.EncodingBase.from_qnn_encoding_dict(entry).to_signed() for name, entry in pairs}


@pytest.mark.parametrize("form", ["0.6.1", "1.0.0"])
def test_aimet_reads_the_same_grids_from_every_form(folder: Path, form: str) -> None:
    older, newest = parsed(folder, form), parsed(folder, "2.0.0")
    assert set(older) == set(newest)
    assert all(older[name].is_equal(newest[name], allow_auto_axis=True) for name in newest)


def test_aimet_quantises_the_float_model_to_our_integers(frozen: FrozenModel, folder: Path) -> None:
    data: dict[str, Any] = json.loads((folder / FILES["2.0.0"]).read_text(encoding="utf-8"))
    # Rows of integers and their scales: an operation of the graph, not a tensor that has a Q.
    data["encodings"] = [entry for entry in data["encodings"] if entry["name"] != "embed.weight"]
    twin = ir.to_proto(float_twin(folder / "model.onnx"))
    theirs = quantsim.encodings_to_onnx_qdq(twin, data, force_activation_as=None)
    edges = frozen.plan.edges
    ids = {"input_ids": np.array([[VOCAB // 2]]), "position": np.array([3])}
    cache, real = {}, {}
    random = np.random.default_rng(1)
    for layer in range(frozen.plan.spec.num_layers):
        for kind, edge in (("key", "k_out"), ("value", "v_out")):
            encoding = edges[f"layers.{layer}.attn.{edge}"]
            name, shape = f"past_key_values.{layer}.{kind}", (1, 2, CONTEXT, 16)
            cache[name] = random.integers(-128, 128, shape).astype(np.int8)
            real[name] = (cache[name].astype(np.float32) - encoding.zero_point[0]) * np.float32(encoding.scale[0])
    expected = run(str(folder / "model.onnx"), {**ids, **cache})
    got = run(theirs.SerializeToString(), {**ids, **real})
    np.testing.assert_array_equal(got["logits"], expected["logits"])
    for layer in range(frozen.plan.spec.num_layers):
        encoding = edges[f"layers.{layer}.attn.k_out"]
        integers = np.rint(got[f"present.{layer}.key"] / np.float32(encoding.scale[0])) + encoding.zero_point[0]
        np.testing.assert_array_equal(integers, expected[f"present.{layer}.key"])
