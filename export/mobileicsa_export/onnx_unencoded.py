"""What a graph for an integer-only compiler leaves in float: operators with an input or output without an encoding."""

from __future__ import annotations

import onnx_ir as ir

BOUNDARIES = ("QuantizeLinear", "DequantizeLinear")


def unencoded(graph: ir.Graph) -> list[dict[str, str]]:
    """{"node", "op", "reason"} of every operator whose real-valued inputs are not all dequantised, or whose
    real-valued outputs are not all quantised at once. A product and its int32 bias are one operator."""
    found = []
    for node in graph:
        if node.op_type in BOUNDARIES:
            continue
        reason = _bare_input(node) or _bare_output(node)
        if reason is not None:
            found.append({"node": node.name or "", "op": node.op_type, "reason": reason})
    return found


def real_tensors(graph: ir.Graph) -> list[str]:
    """Names of tensors that hold real numbers and have no encoding: neither made by a DQ nor quantised at once, nor
    the sum of a product before its int32 bias. Scales are part of an encoding. None are left for an integer compiler.
    """
    constants = [
        value.name or ""
        for value in graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and any(use.node.op_type not in BOUNDARIES for use in value.uses())
    ]
    return constants + [
        value.name or ""
        for node in graph
        if node.op_type != "DequantizeLinear"
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and (value.is_graph_output() or _unquantised(node, value))
    ]


def _unquantised(node: ir.Node, value: ir.Value) -> bool:
    return any(user.op_type != "QuantizeLinear" and not _adds_bias(node, user) for user, _ in value.uses())


def _bare_input(node: ir.Node) -> str | None:
    for value in node.inputs:
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        producer = value.producer()
        if producer is not None and _adds_bias(producer, node):
            continue
        if producer is None:
            return f"constant {value.name} has no encoding"
        if producer.op_type != "DequantizeLinear":
            return f"input from {producer.name} has no encoding"
    return None


def _bare_output(node: ir.Node) -> str | None:
    for value in node.outputs:
        if value.dtype != ir.DataType.FLOAT:
            continue
        for user, _ in value.uses():
            if user.op_type != "QuantizeLinear" and not _adds_bias(node, user):
                return f"output to {user.name} has no encoding"
    return None


def _adds_bias(product: ir.Node, add: ir.Node) -> bool:
    if (product.op_type, add.op_type) != ("MatMul", "Add"):
        return False
    others = [v.producer() for v in add.inputs if v is not None and v.producer() is not product]
    return any(
        n is not None and n.op_type == "DequantizeLinear" and n.inputs[0].dtype == ir.DataType.INT32 for n in others
    )
