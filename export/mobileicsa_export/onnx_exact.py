"""Graph passes that make ONNX Runtime compute as the simulator does, to the last integer.

A float32 region gives another last bit in every implementation (order of sums, exp), and one rounding that falls
the other way there spreads to half of all integers within a few layers. In float64, rounded to float32 before Q,
such a case has odds of about 2**-29 a value.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mobileicsa_export.onnx_constant import constant

SOURCES = ("DequantizeLinear", "MatMulIntegerToFloat")


def multiply_before_rounding(graph: ir.Graph) -> None:
    """Q(x / scale) becomes Q(x * float32(1 / scale)), as PyTorch's quantize_per_tensor has it."""
    for node in list(graph):
        if node.op_type != "QuantizeLinear":
            continue
        scale = float(node.inputs[1].const_value.numpy())
        inverse = constant(graph, f"{node.name}/inverse", ir.tensor(np.float32(1.0 / scale)))
        product = ir.node("Mul", [node.inputs[0], inverse], name=f"{node.name}/inverse")
        product.outputs[0].dtype, product.outputs[0].shape = ir.DataType.FLOAT, node.inputs[0].shape
        graph.insert_before(node, product)
        node.replace_input_with(0, product.outputs[0])
        node.replace_input_with(1, constant(graph, f"{node.name}/one", ir.tensor(np.float32(1.0))))


def widen(graph: ir.Graph) -> None:
    """Compute everything between a DQ (or an integer product) and the next Q in float64.

    Products with weights that are dequantised in float stay in float32.
    """
    wide: dict[ir.Value, ir.Value] = {}  # a float32 value -> its float64 form
    computed: set[ir.Value] = set()  # values that are float64 themselves
    for node in list(graph):
        if node.op_type in SOURCES:
            continue
        sources = [value for value in node.inputs if value is not None and _is_source(value)]
        if node.op_type == "QuantizeLinear" or _has_float_weight(node):
            for index, value in enumerate(node.inputs):
                if value in computed:
                    node.replace_input_with(index, _cast(graph, node, value, ir.DataType.FLOAT))
        elif sources or any(value in computed for value in node.inputs):
            for index, value in enumerate(node.inputs):
                if value is not None and value not in computed and value.dtype == ir.DataType.FLOAT:
                    if value not in wide:
                        wide[value] = _cast(graph, node, value, ir.DataType.DOUBLE)
                    node.replace_input_with(index, wide[value])
            for output in node.outputs:
                output.dtype = ir.DataType.DOUBLE
                computed.add(output)


def _is_source(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in SOURCES


def _has_float_weight(node: ir.Node) -> bool:
    producer = node.inputs[1].producer() if node.op_type == "MatMul" else None
    return producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0].is_initializer()


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}/{dtype.name.lower()}")
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    graph.insert_before(before, node)
    return node.outputs[0]
