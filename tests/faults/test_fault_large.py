"""Torture list, cases 52 and 53: where an ONNX model's weights may lie, and more than 2 GB of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from mobileicsa_export.onnx_data import SharedData
from mobileicsa_export.onnx_load import load_graph

from mobileicsa.core.errors import InputError

ROWS, WIDTH = 64, 1024
GIB = 1 << 30


def gather_model(folder: Path, location: str = "model.onnx.data", offset: int = 0) -> Path:
    """y = table[i], the table external at `offset` of `location`."""
    table = onnx.TensorProto(name="table", data_type=onnx.TensorProto.INT8, dims=[ROWS, WIDTH])
    table.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(ROWS * WIDTH))):
        table.external_data.add(key=key, value=value)
    node = onnx.helper.make_node("Gather", ["table", "i"], ["y"])
    index = onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [1])
    row = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [1, WIDTH])
    graph = onnx.helper.make_graph([node], "gather", [index], [row], [table])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def table_bytes() -> bytes:
    return np.random.default_rng(0).integers(-128, 128, ROWS * WIDTH, dtype=np.int8).tobytes()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside.data"
    path.write_bytes(table_bytes())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize("location", ["../outside.data", "./../outside.data", "a/../../outside.data"])
def test_fault_52_a_path_out_of_the_folder_is_refused(folder: Path, outside: Path, location: str) -> None:
    with pytest.raises(InputError, match="outside the folder") as caught:
        load_graph(gather_model(folder, location))
    assert caught.value.exit_code == 3


def test_fault_52_an_absolute_path_is_refused(folder: Path, outside: Path) -> None:
    with pytest.raises(InputError, match="outside the folder"):
        load_graph(gather_model(folder, str(outside)))


def test_fault_52_an_empty_base_folder_guards_as_any_other(
    folder: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather_model(folder, "../outside.data")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="outside the folder"):
        load_graph(Path("model.onnx"))


def test_fault_52_links_out_of_the_folder_are_refused(folder: Path, outside: Path) -> None:
    path = gather_model(folder)
    for link in (os.link, os.symlink):
        link(outside, folder / "model.onnx.data")
        with pytest.raises(InputError, match="link"):
            load_graph(path)
        (folder / "model.onnx.data").unlink()


def test_fault_52_a_linked_folder_inside_is_refused(folder: Path, outside: Path) -> None:
    (folder / "data").symlink_to(outside.parent)
    with pytest.raises(InputError, match="symbolic link"):
        load_graph(gather_model(folder, "data/outside.data"))


@pytest.mark.parametrize("offset", [0, 2 * GIB, 5 * GIB])
def test_fault_53_weights_behind_two_gigabytes_are_read(folder: Path, offset: int) -> None:
    path, data = gather_model(folder, offset=offset), table_bytes()
    with (folder / "model.onnx.data").open("wb") as file:  # sparse: the hole takes no disk
        file.seek(offset)
        file.write(data)
    load_graph(path)
    session = ort.InferenceSession(path)
    (row,) = session.run(None, {"i": np.array([ROWS - 1])})
    assert row.tobytes() == data[-WIDTH:]


@pytest.mark.slow
def test_fault_53_more_than_two_gigabytes_go_to_the_data_file_by_themselves(folder: Path) -> None:
    count, size = 33, 64 << 20
    names = [f"table_{k}" for k in range(count)]
    index = ir.Value(name="i", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    tables, nodes = [], []
    for k, name in enumerate(names):
        make = lambda k=k: ir.tensor(np.full((ROWS, size // ROWS), k, dtype=np.int8))  # noqa: E731
        lazy = ir.LazyTensor(make, dtype=ir.DataType.INT8, shape=ir.Shape([ROWS, size // ROWS]), name=name)
        value = ir.Value(name=name, const_value=lazy, type=ir.TensorType(ir.DataType.INT8), shape=lazy.shape)
        tables.append(value)
        nodes.append(ir.node("Gather", [value, index]))
        nodes[-1].outputs[0].name = f"y_{k}"
        nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = value.type, ir.Shape([1, size // ROWS])
    graph = ir.Graph(
        [index], [n.outputs[0] for n in nodes], nodes=nodes, initializers=tables, opset_imports={"": 21}, name="big"
    )
    model = ir.Model(graph, ir_version=10)
    with SharedData(folder / "model.onnx.data") as data:
        data.save(model, folder / "model.onnx")
    assert (folder / "model.onnx.data").stat().st_size == count * size > 2 * GIB
    assert (folder / "model.onnx").stat().st_size < 1 << 16
    load_graph(folder / "model.onnx")
    session = ort.InferenceSession(folder / "model.onnx")
    rows = session.run(None, {"i": np.array([5])})
    assert [int(row[0, 0]) for row in rows] == list(range(count))
