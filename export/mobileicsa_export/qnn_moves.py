"""Graph passes: unsigned integers, and an encoding around every operator that moves them.

The portable form moves bare integers (onnx_layout.py). Qualcomm's provider reads an encoding only from a DQ before
and a Q behind an operator; without them it refuses the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mobileicsa.core.errors import Unsupported

# Operators that move integers, and which inputs hold them (None: all).
MOVES = {
    "Concat": None,
    "Expand": (0,),
    "Gather": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Squeeze": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
UNSIGNED = {ir.DataType.INT8: ir.DataType.UINT8, ir.DataType.INT16: ir.DataType.UINT16}
OFFSETS = {ir.DataType.INT8: 1 << 7, ir.DataType.INT16: 1 << 15}
Encoding = tuple[ir.Value, ir.Value]  # scale, zero point


def make_unsigned(graph: ir.Graph) -> None:
    """Move every per-tensor encoding and what is stored on its grid up by half of the integer's range."""
    shifted: set[ir.Value] = set()
    for node in graph:
        if is_per_tensor(node):
            shifted.add(node.inputs[2])
            if node.op_type == "DequantizeLinear":
                shifted |= set(_sources(node.inputs[0]))
    for value in shifted:
        if value.const_value is not None:
            _shift(value)
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        if value.dtype in UNSIGNED:
            value.dtype = UNSIGNED[value.dtype]


def encode_moves(graph: ir.Graph) -> None:
    """op(integers) becomes Q(op(DQ(integers)))."""
    for node in list(graph):
        if node.op_type in MOVES and node.outputs[0].dtype in UNSIGNED.values():
            _encode_move(graph, node)


def is_per_tensor(node: ir.Node) -> bool:
    """Q or DQ with one scale of an 8- or 16-bit tensor."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    zero = node.inputs[2].const_value
    return zero is not None and zero.size == 1 and (zero.dtype in UNSIGNED or zero.dtype in UNSIGNED.values())


def _data(node: ir.Node) -> list[int]:
    positions = MOVES[node.op_type]
    return list(range(len(node.inputs)) if positions is None else positions)


def _sources(value: ir.Value) -> Iterator[ir.Value]:
    """Initialisers (and inputs) that reach `value` through operators that only move integers."""
    producer = value.producer()
    if producer is None:
        yield value
    elif producer.op_type in MOVES:
        for position in _data(producer):
            yield from _sources(producer.inputs[position])


def _shift(value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    signed = tensor.dtype
    if signed not in UNSIGNED:
        return
    unsigned = UNSIGNED[signed]

    def shifted() -> ir.TensorProtocol:
        moved = tensor.numpy().astype(np.int32) + OFFSETS[signed]
        return ir.tensor(moved.astype(unsigned.numpy()), dtype=unsigned)

    value.const_value = ir.LazyTensor(shifted, dtype=unsigned, shape=tensor.shape, name=value.name)
    value.dtype = unsigned


def _encode_move(graph: ir.Graph, node: ir.Node) -> None:
    out = node.outputs[0]
    encoding = _encoding_behind(out) or _encoding_before(out)
    if encoding is None:
        raise Unsupported(node.op_type, f"{node.name}: moves integers whose encoding is not known")
    inputs = list(node.inputs)
    for position in _data(node):
        dequantize = ir.node("DequantizeLinear", [inputs[position], *encoding], name=f"{node.name}/dq{position}")
        dequantize.outputs[0].dtype, dequantize.outputs[0].shape = ir.DataType.FLOAT, inputs[position].shape
        graph.insert_before(node, dequantize)
        inputs[position] = dequantize.outputs[0]
    moved = ir.node(
        node.op_type, inputs, dict(node.attributes), name=node.name, metadata_props=dict(node.metadata_props)
    )
    moved.outputs[0].dtype, moved.outputs[0].shape = ir.DataType.FLOAT, out.shape
    quantize = ir.node("QuantizeLinear", [moved.outputs[0], *encoding], name=f"{node.name}/q")
    quantize.outputs[0].dtype, quantize.outputs[0].shape = out.dtype, out.shape
    graph.insert_before(node, [moved, quantize])
    name = out.name
    out.replace_all_uses_with(quantize.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    quantize.outputs[0].name = name


def _encoding_behind(value: ir.Value) -> Encoding | None:
    """That of the next DQ behind moves."""
    for user, _ in value.uses():
        if user.op_type == "DequantizeLinear" and is_per_tensor(user):
            return user.inputs[1], user.inputs[2]
        if user.op_type in MOVES and (found := _encoding_behind(user.outputs[0])) is not None:
            return found
    return None


def _encoding_before(value: ir.Value) -> Encoding | None:
    """That of the Q before moves."""
    producer = value.producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        return producer.inputs[1], producer.inputs[2]
    if producer is not None and producer.op_type in MOVES:
        return _encoding_before(producer.inputs[_data(producer)[0]])
    return None
