"""Stage programs as ONNX files, one each, over one file of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch.export import ExportedProgram

from mobileicsa.core.target import Target
from mobileicsa.program.backend import Array, Written
from mobileicsa_export.onnx import DATA_FILE, _describe, _facts
from mobileicsa_export.onnx_data import SharedData
from mobileicsa_export.onnx_graph import convert, drop_unused, to_qdq_form
from mobileicsa_export.onnx_session import start

MOVES = ("Transpose", "Reshape", "Slice", "Gather", "Squeeze", "Unsqueeze", "Expand", "Concat", "Identity")
DEQUANTIZE_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default


def write_stages(programs: Mapping[str, ExportedProgram], target: Target, folder: Path) -> Written:
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    with SharedData(folder / DATA_FILE) as data:
        for name, program in programs.items():
            model = convert(program, target.opset)
            to_qdq_form(model, _stored_bits(program, target))
            _share_encodings(model.graph)
            _name(model)
            facts[name] = _facts(model)
            _describe(model, name, {"target": target.name})
            data.save(model, folder / _file(name))
    for name in programs:
        onnx.checker.check_model(str(folder / _file(name)), full_check=True)
    return Written(files=(*(folder / _file(name) for name in programs), folder / DATA_FILE), facts=facts)


class OnnxStages:
    def __init__(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> None:
        self._sessions: dict[str, ort.InferenceSession] = {
            name: start(folder / _file(name), threads=threads, numerics="fast") for name in names
        }

    def run(self, name: str, inputs: Sequence[Array]) -> list[Array]:
        session = self._sessions[name]
        fed = {
            given.name: np.ascontiguousarray(array) for given, array in zip(session.get_inputs(), inputs, strict=True)
        }
        found: list[Array] = session.run(None, fed)
        return found

    def close(self) -> None:
        self._sessions = {}


def _share_encodings(graph: ir.Graph) -> None:
    """A dequantise reads the scale and zero point of the quantise whose integers reach it."""
    for node in graph:
        if node.op_type != "DequantizeLinear":
            continue
        source = node.inputs[0].producer()
        while source is not None and source.op_type in MOVES:
            source = source.inputs[0].producer()
        if source is not None and source.op_type == "QuantizeLinear":
            for position in (1, 2):
                node.replace_input_with(position, source.inputs[position])
    drop_unused(graph)


def _name(model: ir.Model) -> None:
    """Inputs and outputs by what they are; the exporter's metadata holds machine paths."""
    graph = model.graph
    names = ["input"] if len(graph.inputs) == 1 else ["state", "history"]
    for value, name in zip(graph.inputs, names, strict=True):
        value.name = name
    integers = [value.dtype != ir.DataType.FLOAT for value in graph.outputs]
    given = ["logits", "next_state", "next_history"] if any(integers) else _logits(len(integers))
    for value, name in zip(graph.outputs, given, strict=True):
        value.name = name
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    for item in (model, graph, *graph, *values):
        item.metadata_props.clear()
        item.doc_string = None


def _logits(count: int) -> list[str]:
    return ["logits"] if count == 1 else [f"logits_{exit}" for exit in range(count)]


def _file(name: str) -> str:
    return f"{name}.onnx"


def _stored_bits(program: ExportedProgram, target: Target) -> dict[str, int]:
    """Bits of each 4-bit weight in the file, by its name in the program."""
    signature = program.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    four = 4 if target.int4_storage == "int4" else 8
    weights = (n for n in program.graph.nodes if n.target is DEQUANTIZE_CHANNEL and n.args[5] == 7)
    return {names[node.args[0].name]: four for node in weights}
