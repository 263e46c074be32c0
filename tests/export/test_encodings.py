"""The encodings files name the tensors of the ONNX files, all of them, and mean the same integers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from mobileicsa_export.encodings import FILES
from mobileicsa_export.onnx import MODEL_FILES, OnnxBackend
from tiny_frozen import CONTEXT, target, tiny_frozen

from mobileicsa.program.frozen import FrozenModel, build_decoder

FORMS = tuple(FILES)
QDQ = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(scope="module")
def frozen() -> FrozenModel:
    return tiny_frozen("w4a8", qkv_bias=True)


@pytest.fixture(scope="module", params=[False, True], ids=["fused", "primitive"])
def folder(request: pytest.FixtureRequest, frozen: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("encodings")
    OnnxBackend().write(build_decoder(frozen, primitive=request.param), target(), folder, {"context": CONTEXT})
    return folder


def entries(folder: Path, form: str) -> dict[str, dict[str, Any]]:
    """name -> {"bits", "scale": [...], "zero_point": [...] of signed integers, "axis"} whichever the form."""
    data = json.loads((folder / FILES[form]).read_text(encoding="utf-8"))
    assert data["version"] == form
    if form == "2.0.0":
        return {entry["name"]: _newest(entry) for entry in data["encodings"]}
    sections = (data["activation_encodings"], data["param_encodings"])
    if form == "1.0.0":
        rows = [(e["name"], e["bw"], e["scale"], e["offset"]) for section in sections for e in section]
    else:
        rows = [
            (name, e[0]["bitwidth"], [c["scale"] for c in e], [c["offset"] for c in e])
            for section in sections
            for name, e in section.items()
        ]
    assert len({name for name, *_ in rows}) == len(rows)
    return {
        name: {"bits": bits, "scale": scale, "zero_point": [-offset - 2 ** (bits - 1) for offset in offsets]}
        for name, bits, scale, offsets in rows
    }


def _newest(entry: dict[str, Any]) -> dict[str, Any]:
    scale = np.atleast_1d(entry["y_scale"])
    zero = np.atleast_1d(entry.get("y_zero_point", np.zeros(scale.shape, int)))
    bits = int(entry["output_dtype"].removeprefix("int"))
    return {"bits": bits, "scale": scale, "zero_point": zero, "axis": entry.get("axis")}


def quantised(folder: Path) -> Iterator[tuple[str, ir.Node]]:
    """Each Q and DQ of both files with the name of its real-valued tensor; a stored one's is its integers' name."""
    for file in MODEL_FILES.values():
        for node in ir.load(folder / file).graph:
            if node.op_type not in QDQ:
                continue
            source = node.inputs[0]
            if node.op_type == "QuantizeLinear":
                yield source.name, node
            elif source.producer() is not None and source.producer().op_type == "Transpose":
                turned = source.producer().inputs[0]  # a tied head reads the embedding's table
                yield turned.name if turned.is_initializer() else node.outputs[0].name, node
            else:
                yield source.name if source.is_initializer() else node.outputs[0].name, node


@pytest.mark.parametrize("form", FORMS)
def test_every_q_and_dq_has_an_entry_with_its_values(frozen: FrozenModel, folder: Path, form: str) -> None:
    known, seen = entries(folder, form), 0
    for name, node in quantised(folder):
        entry, zero = known[name], node.inputs[2]
        bits = frozen.plan.weights[name].bits if name in frozen.plan.weights else zero.dtype.itemsize * 8
        assert entry["bits"] == bits, name
        np.testing.assert_array_equal(np.float32(entry["scale"]), node.inputs[1].const_value.numpy().ravel())
        np.testing.assert_array_equal(entry["zero_point"], zero.const_value.numpy().ravel())
        seen += 1
    assert seen > 100


@pytest.mark.parametrize("form", FORMS)
def test_the_cache_has_the_encoding_of_the_dq_that_reads_it(frozen: FrozenModel, folder: Path, form: str) -> None:
    known = entries(folder, form)
    graph = ir.load(folder / MODEL_FILES["decode"]).graph
    caches = [value for value in graph.inputs if value.dtype == ir.DataType.INT8]
    assert len(caches) == 2 * frozen.plan.spec.num_layers
    for value in caches:
        reader, entry = value, known[value.name]
        while (node := reader.uses()[0].node).op_type != "DequantizeLinear":
            reader = node.outputs[0]
        assert entry["scale"] == [float(node.inputs[1].const_value.numpy())]
        assert list(entry["zero_point"]) == [int(node.inputs[2].const_value.numpy())]
        written = known[value.name.replace("past_key_values", "present")]
        assert (written["scale"], written["bits"]) == (entry["scale"], 8)


@pytest.mark.parametrize("form", FORMS)
def test_every_entry_is_a_tensor_of_the_files(frozen: FrozenModel, folder: Path, form: str) -> None:
    names: set[str] = set()
    for file in MODEL_FILES.values():
        graph = onnx.load(folder / file, load_external_data=False).graph
        names |= {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
    known = set(entries(folder, form))
    assert known <= names
    assert {"logits", "head.logits", "layers.0.attn.q_proj.weight", "embed.weight", *frozen.plan.weights} <= known


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_has_one_encoding_a_channel_that_means_its_integers(
    frozen: FrozenModel, folder: Path, form: str
) -> None:
    known = entries(folder, form)
    for name, weight in frozen.plan.weights.items():
        entry = known[name]
        assert entry["bits"] == weight.bits
        np.testing.assert_allclose(entry["scale"], frozen.tensors[f"{name}.scale"].numpy(), rtol=1e-7)
        assert not np.any(entry["zero_point"])


def test_the_newest_form_names_the_axis_of_the_stored_tensor(frozen: FrozenModel, folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    known = entries(folder, "2.0.0")
    for name in frozen.plan.weights:
        assert shapes[name][known[name]["axis"]] == len(known[name]["scale"]), name
    assert known["layers.0.attn.softmax.out"]["axis"] is None


def test_the_older_form_states_the_range_of_the_grid(folder: Path) -> None:
    data = json.loads((folder / FILES["0.6.1"]).read_text(encoding="utf-8"))
    for (entry,) in data["activation_encodings"].values():
        steps = 2 ** entry["bitwidth"]
        assert entry["min"] == entry["scale"] * entry["offset"]
        assert entry["max"] == pytest.approx(entry["min"] + entry["scale"] * (steps - 1), rel=1e-9)
        assert entry["is_symmetric"] == str(entry["offset"] == -steps // 2)
