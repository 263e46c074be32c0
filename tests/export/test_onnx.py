"""The ONNX back end: what it writes, and that ONNX Runtime's integers are the simulator's."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from mobileicsa_export import onnx as onnx_backend
from mobileicsa_export.onnx import DATA_FILE, MODEL_FILES, OnnxBackend
from onnx import TensorProto
from tiny_frozen import CONTEXT, VOCAB, target, tiny_frozen, tiny_spec

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.errors import Unsupported
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.methods import input_names, output_names

METADATA: dict[str, Any] = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [1, 5], "context": CONTEXT}
PATHS = [MODEL_FILES["decode"], MODEL_FILES["prefill"]]


def written(decoder: Decoder, folder: Path, int4_storage: str = "int8") -> Path:
    OnnxBackend().write(decoder, target(int4_storage), folder, METADATA)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def frozen() -> FrozenModel:
    return tiny_frozen("w8a8")


@pytest.fixture(scope="module")
def artifact(frozen: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(build_decoder(frozen, primitive=False), tmp_path_factory.mktemp("w8a8"))


@pytest.fixture(scope="module")
def int4_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoder = build_decoder(tiny_frozen("w4a8", tied_head=False), primitive=False)
    return written(decoder, tmp_path_factory.mktemp("w4a8"), "int4")


def graph(folder: Path, method: str = "decode") -> onnx.GraphProto:
    return onnx.load(folder / MODEL_FILES[method]).graph


@pytest.mark.parametrize("file", PATHS)
def test_models_pass_the_full_checker_and_need_no_shape_beyond_their_own(artifact: Path, file: str) -> None:
    onnx.checker.check_model(str(artifact / file), full_check=True)
    model = onnx.load(artifact / file, load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert [i.name for i in model.graph.input] == input_names(tiny_spec())
    assert [o.name for o in model.graph.output] == output_names(tiny_spec())
    assert all(d.dim_value > 0 for i in model.graph.input for d in i.type.tensor_type.shape.dim)


def test_metadata_tells_a_runtime_what_it_needs(artifact: Path) -> None:
    found = {p.key: p.value for p in onnx.load(artifact / "model.onnx", load_external_data=False).metadata_props}
    assert found["bos_id"] == "1"
    assert found["eos_ids"] == "[2]"
    assert found["prefix_ids"] == "[1, 5]"
    assert found["context"] == str(CONTEXT)
    assert found["method"] == "decode"
    assert found["mobileicsa_version"]


@pytest.mark.parametrize("method", MODEL_FILES)
def test_names_are_unique_module_paths(artifact: Path, method: str) -> None:
    found = graph(artifact, method)
    names = [n.name for n in found.node]
    values = [o for n in found.node for o in n.output] + [i.name for i in found.initializer]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)
    assert {"layers.0.attn.q_proj/MatMul", "layers.1.mlp.down_proj/MatMul", "head.proj/MatMul"} <= set(names)
    assert {"layers.0.attn.q_proj.out", "layers.0.attn.q_proj.out/q", "layers.0.attn.q_proj.weight/scale"} <= set(
        values
    )
    assert all(n.split("/")[0].split(".")[0] in ("inputs", "embed", "layers", "head") for n in names)


def test_files_hold_no_path_of_the_machine(artifact: Path) -> None:
    root = str(Path(onnx_backend.__file__).resolve().parents[2]).encode()
    for file in PATHS:
        data = (artifact / file).read_bytes()
        assert root not in data
        assert b"stack_trace" not in data


def test_every_encoding_is_signed_with_an_explicit_zero_point(artifact: Path) -> None:
    found = graph(artifact)
    kinds = {i.name: i.data_type for i in found.initializer}
    nodes = [n for n in found.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert nodes
    assert {kinds[n.input[2]] for n in nodes} == {TensorProto.INT8, TensorProto.INT16}


def test_layout_operators_move_integers(artifact: Path) -> None:
    for method in MODEL_FILES:
        found = graph(artifact, method)
        makers = {o: n.op_type for n in found.node for o in n.output}
        moved = [n for n in found.node if n.op_type in ("Reshape", "Transpose", "Slice")]
        assert moved
        assert not [n.name for n in moved if makers.get(n.input[0]) == "DequantizeLinear"]


def test_both_models_share_one_copy_of_the_weights(artifact: Path, frozen: FrozenModel) -> None:
    places: dict[str, set[str]] = {}
    for file in PATHS:
        for item in onnx.load(artifact / file, load_external_data=False).graph.initializer:
            where = {e.key: e.value for e in item.external_data}
            if where:
                assert where["location"] == DATA_FILE
                places.setdefault(item.name, set()).add(where["offset"])
    assert all(len(offsets) == 1 for offsets in places.values())
    integers = sum(frozen.tensors[name].numel() for name in frozen.plan.weights)
    # Tables and scales are small beside them; a second copy of anything large would not fit.
    assert integers <= (artifact / DATA_FILE).stat().st_size < 1.5 * integers


def test_a_tied_table_is_stored_once(artifact: Path) -> None:
    tables = [i.name for i in graph(artifact).initializer if i.data_type == TensorProto.INT8 and VOCAB in i.dims]
    assert [name for name in tables if "zero_point" not in name] == ["embed.weight"]


def test_four_bit_weights_are_int4_where_the_target_wants_it(int4_artifact: Path, tmp_path: Path) -> None:
    frozen = tiny_frozen("w4a8", tied_head=False)
    decoder = build_decoder(frozen, primitive=False)
    wide = graph(written(decoder, tmp_path, "int8"))
    weights = {i.name: i for i in graph(int4_artifact).initializer if i.name.endswith("proj.weight")}
    kinds = {name: item.data_type for name, item in weights.items()}
    assert kinds.pop("head.proj.weight") == TensorProto.INT8
    assert set(kinds.values()) == {TensorProto.INT4}
    for item in wide.initializer:
        if item.name in kinds:
            assert item.data_type == TensorProto.INT8
            stored = onnx.numpy_helper.to_array(weights[item.name]).astype(np.int8)
            np.testing.assert_array_equal(stored, onnx.numpy_helper.to_array(item))
            np.testing.assert_array_equal(stored.T, frozen.tensors[item.name].numpy())


def test_two_writes_give_the_same_bytes(frozen: FrozenModel, artifact: Path, tmp_path: Path) -> None:
    again = written(build_decoder(frozen, primitive=False), tmp_path)
    for file in (*PATHS, DATA_FILE):
        assert (again / file).read_bytes() == (artifact / file).read_bytes(), file


def test_a_range_that_onnx_cannot_express_is_refused(frozen: FrozenModel, tmp_path: Path) -> None:
    plan = copy.copy(frozen.plan)
    narrow = TensorEncoding(bits=8, scale=(0.1,), zero_point=(0,), narrow=True)
    object.__setattr__(plan, "edges", {**plan.edges, "layers.0.mlp.product": narrow})
    decoder = build_decoder(FrozenModel(plan, frozen.tensors), primitive=False)
    with pytest.raises(Unsupported, match=r"QuantizeLinear.*-127"):
        OnnxBackend().write(decoder, target(), tmp_path, METADATA)


def test_facts_count_what_is_in_the_file(frozen: FrozenModel, tmp_path: Path) -> None:
    facts = OnnxBackend().write(build_decoder(frozen, primitive=False), target(), tmp_path, METADATA).facts
    ops = Counter(n.op_type for n in graph(tmp_path).node)
    assert facts["ops"] == dict(ops)
    assert facts["nodes"] == sum(ops.values())
    assert facts["opset"] == 21
    assert facts["integer_initialisers_bytes"] >= sum(frozen.tensors[n].numel() for n in frozen.plan.weights)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OnnxBackend().unavailable() is None
    find = onnx_backend.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_backend.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    line = OnnxBackend().unavailable()
    assert line is not None
    assert "onnxruntime" in line
    assert "pip install 'mobileicsa[onnx]'" in line
