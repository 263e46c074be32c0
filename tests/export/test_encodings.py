"""The encodings files name the tensors of model.onnx, all of them, and mean the same integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from mobileicsa_export.encodings import FILES
from mobileicsa_export.onnx import OnnxBackend
from tiny_frozen import CONTEXT, target, tiny_frozen

from mobileicsa.program.frozen import FrozenModel, build_decoder

BITS = {onnx.TensorProto.INT8: 8, onnx.TensorProto.INT16: 16}

# Edges whose tensors the graph holds as integers: nothing quantises them there.
STORED_AS_INTEGERS = {"embed.codes", "embed.row_scales", "rope_tables.0", "mask"}


@pytest.fixture(scope="module")
def frozen() -> FrozenModel:
    return tiny_frozen("w4a8")


@pytest.fixture(scope="module")
def folder(frozen: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("encodings")
    # Primitive: every edge of the plan has its Q in this graph.
    OnnxBackend().write(build_decoder(frozen, primitive=True), target(), folder, {"context": CONTEXT})
    return folder


def entries(folder: Path, form: str) -> dict[str, dict[str, Any]]:
    """name -> {"bits", "scale": [...], "offset": [...]} whichever the form."""
    data = json.loads((folder / FILES[form]).read_text(encoding="utf-8"))
    assert data["version"] == form
    sections = (data["activation_encodings"], data["param_encodings"])
    if form == "1.0.0":
        return {e["name"]: {"bits": e["bw"], **e} for section in sections for e in section}
    return {
        name: {"bits": e[0]["bitwidth"], "scale": [c["scale"] for c in e], "offset": [c["offset"] for c in e]}
        for section in sections
        for name, e in section.items()
    }


@pytest.mark.parametrize("form", FILES)
def test_every_quantize_node_has_an_entry_that_means_its_integers(frozen: FrozenModel, folder: Path, form: str) -> None:
    known, graph = entries(folder, form), onnx.load(folder / "model.onnx").graph
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    kinds = {i.name: i.data_type for i in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    assert len(nodes) == len(set(frozen.plan.edges) - STORED_AS_INTEGERS)
    for node in nodes:
        entry, bits = known[node.input[0]], BITS[kinds[node.input[2]]]
        scale, zero = stored[node.input[1]], int(stored[node.input[2]])
        x = np.linspace(-1.1, 1.1, 41, dtype=np.float32) * scale * 2 ** (bits - 1)
        ours = np.clip(np.rint(x / scale) + zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        theirs = np.clip(np.rint(x / np.float32(entry["scale"][0])) - entry["offset"][0], 0, 2 ** entry["bits"] - 1)
        np.testing.assert_array_equal(ours, theirs - 2 ** (bits - 1), err_msg=node.name)


@pytest.mark.parametrize("form", FILES)
def test_every_weight_has_one_encoding_a_channel_that_means_its_integers(
    frozen: FrozenModel, folder: Path, form: str
) -> None:
    known = entries(folder, form)
    names = {i.name for i in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer}
    for name, weight in frozen.plan.weights.items():
        assert name in names
        entry, integers = known[name], frozen.tensors[name].numpy().astype(np.float64)
        assert entry["bits"] == weight.bits
        scale, offset = (np.array(entry[key])[:, None] for key in ("scale", "offset"))
        unsigned = integers + 2 ** (weight.bits - 1)
        real = integers * frozen.tensors[f"{name}.scale"].numpy()[:, None]
        np.testing.assert_allclose(scale * (unsigned + offset), real, rtol=1e-7)


@pytest.mark.parametrize("form", FILES)
def test_every_edge_and_weight_of_the_plan_has_an_entry(frozen: FrozenModel, folder: Path, form: str) -> None:
    assert len(entries(folder, form)) == len(frozen.plan.edges) + len(frozen.plan.weights)


@pytest.mark.parametrize("form", FILES)
def test_every_stored_weight_of_the_graph_has_an_entry(folder: Path, form: str) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    produced = {n.output[0]: n for n in graph.node}
    read = {n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in produced}
    stored = read & {i.name for i in graph.initializer}
    assert len(stored) >= 14
    assert stored <= set(entries(folder, form))


def test_the_older_form_states_the_range_of_the_grid(folder: Path) -> None:
    data = json.loads((folder / FILES["0.6.1"]).read_text(encoding="utf-8"))
    (entry,) = data["activation_encodings"]["layers.0.attn.softmax.out"]
    assert entry["min"] == 0.0
    assert entry["max"] == pytest.approx(entry["scale"] * 65535, rel=1e-9)
    assert entry["max"] >= 1.0
    assert entry["is_symmetric"] == "False"
