"""Graph pass: operands and result of every operator have one width, 8 or 16 bits.

Of mixed widths Qualcomm's provider makes dequantise - float operator - quantise, without a word and with the CPU
fallback off. A product with a weight of mixed widths it refuses.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.onnx_constant import constant
from mobileicsa_export.qnn_moves import Encoding, is_per_tensor

COMPUTES = ("Add", "Div", "Exp", "MatMul", "Mul", "ReduceMax", "ReduceSum", "Sigmoid", "Sqrt", "Sub", "Tanh")
BITS = {ir.DataType.UINT8: 8, ir.DataType.UINT16: 16}
# 16-bit steps in one 8-bit step. Widened integers and their scale are exact, and the emulator's products of them are
# within one step; with the scale left alone they were thousands of steps off. A result that is rounded twice needs an
# odd number: every border between two 8-bit integers is then one between two 16-bit integers, and 255 * 257 = 65,535.
WIDEN, NARROW = 256, 257


def one_width(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type in COMPUTES:
            _one_width(graph, node)


def _one_width(graph: ir.Graph, node: ir.Node) -> None:
    widths, out = [_width(value) for value in node.inputs], _output_width(node)
    if 16 not in (*widths, out):
        return
    for position, width in enumerate(widths):
        # Of products of activations there is a kernel of 16 bits by 8 bits, none of 16 by 16.
        if width == 8 and (node.op_type, position) != ("MatMul", 1):
            node.replace_input_with(position, _widened(graph, node, position))
            if (bias := _bias(node)) is not None:
                _refine_bias(graph, bias)
    if out == 8:
        _round_twice(graph, node)


def _width(value: ir.Value | None) -> int | None:
    """Bits of the integers behind a dequantised activation."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or not is_per_tensor(producer):
        return None
    return BITS[producer.inputs[2].dtype]


def _bias(node: ir.Node) -> ir.Node | None:
    """DQ of the int32 bias that is added to a product."""
    users = [use.node for use in node.outputs[0].uses()]
    if node.op_type != "MatMul" or [user.op_type for user in users] != ["Add"]:
        return None
    others = [value.producer() for value in users[0].inputs if value is not node.outputs[0]]
    found = [n for n in others if n is not None and n.op_type == "DequantizeLinear"]
    return next((n for n in found if n.inputs[0].dtype == ir.DataType.INT32), None)


def _refine_bias(graph: ir.Graph, bias: ir.Node) -> None:
    """A bias lies on the grid of the sum, scale(input) * scale(weight): the HTP takes that for granted."""
    codes, scale = (bias.inputs[i].const_value.numpy() for i in (0, 1))
    wide = codes.astype(np.int64) * WIDEN
    if np.abs(wide).max(initial=0) > np.iinfo(np.int32).max:
        raise Unsupported("Add", f"{bias.name}: the bias does not fit 32 bits on the grid of a 16-bit input")
    for position, value in ((0, wide.astype(np.int32)), (1, scale / np.float32(WIDEN))):
        name = f"{bias.inputs[position].name}/{WIDEN}"
        bias.replace_input_with(position, constant(graph, name, ir.tensor(value)))


def _quantizers(node: ir.Node) -> list[ir.Node]:
    """Where a result is rounded, behind the sum with its bias if it has one."""
    users = [use.node for use in node.outputs[0].uses()]
    if node.op_type == "MatMul" and [user.op_type for user in users] == ["Add"]:
        return _quantizers(users[0])
    return [user for user in users if user.op_type == "QuantizeLinear"]


def _output_width(node: ir.Node) -> int | None:
    widths = {BITS.get(user.inputs[2].dtype) for user in _quantizers(node)}
    return widths.pop() if len(widths) == 1 else None


def _widened(graph: ir.Graph, node: ir.Node, position: int) -> ir.Value:
    """An operand's real numbers, dequantised from 16-bit integers."""
    real = node.inputs[position]
    dequantize = real.producer()
    assert dequantize is not None
    return _requantized(graph, node, real, _finer(graph, dequantize, WIDEN), f"{node.name}/wide{position}")


def _round_twice(graph: ir.Graph, node: ir.Node) -> None:
    """Round to 16-bit integers of the output's range first, then to its 8 bits: the same 8 bits."""
    for quantize in _quantizers(node):
        fine = _requantized(
            graph, quantize, quantize.inputs[0], _finer(graph, quantize, NARROW), f"{quantize.name}/fine"
        )
        quantize.replace_input_with(0, fine)


def _finer(graph: ir.Graph, coded: ir.Node, steps: int) -> Encoding:
    """The 16-bit encoding with `steps` integers to one of a Q or DQ node's 8-bit encoding, zero at the same place."""
    scale, zero = coded.inputs[1], coded.inputs[2]
    names = f"{scale.name}/{steps}", f"{zero.name}/{steps}"
    if names[0] not in graph.initializers:
        values = scale.const_value.numpy() / np.float32(steps), zero.const_value.numpy().astype(np.uint16) * steps
        for name, value, dtype in zip(names, values, (np.float32, np.uint16), strict=True):
            constant(graph, name, ir.tensor(np.asarray(value, dtype=dtype)))
    return graph.initializers[names[0]], graph.initializers[names[1]]


def _requantized(graph: ir.Graph, before: ir.Node, real: ir.Value, encoding: Encoding, name: str) -> ir.Value:
    quantize = ir.node("QuantizeLinear", [real, *encoding], name=f"{name}/q")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *encoding], name=f"{name}/dq")
    for node, dtype in ((quantize, encoding[1].dtype), (dequantize, ir.DataType.FLOAT)):
        node.outputs[0].dtype, node.outputs[0].shape = dtype, real.shape
    graph.insert_before(before, [quantize, dequantize])
    return dequantize.outputs[0]
