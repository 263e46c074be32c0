"""From the portable QDQ graph to the operators that ONNX Runtime's CPU provider runs fast. Used in memory at open.

ONNX Runtime would keep a product with 16-bit output in float and dequantise its weights at every token, and on x86
it has no fast kernel for signed 8-bit activations. Here every product of 8-bit activations and constant weights
becomes an integer kernel, and on x86 the activations are stored as unsigned integers 128 higher, with zero points
128 higher: the same sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mobileicsa_export.onnx_exact import multiply_before_rounding, widen

CONTRIB = "com.microsoft"
EIGHT_BIT = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What a CPU offers.

    - unsigned: 8-bit activations must be uint8 to be fast (x86);
    - mixed_sign_exact: uint8 x int8 sums do not saturate. Without it only MatMulIntegerToFloat is used, which
      `session.x64quantprecision` makes exact; that option forgets QLinearMatMul.
    """

    unsigned: bool
    mixed_sign_exact: bool


def lower(model: ir.Model, kernels: Kernels, *, exact: bool = False) -> None:
    """Rewrite in place. `exact`: every product sums integers and is scaled once, all else is float64; slower."""
    graph = model.graph
    if kernels.unsigned:
        _make_unsigned(graph)
    for node in list(graph):
        if node.op_type == "MatMul" and not _integer_product(graph, node, kernels, exact):
            _product_with_transposed(graph, node)
    if exact:
        _drop_unused(graph)
        widen(graph)
        multiply_before_rounding(graph)
    else:
        for node in list(graph):
            if node.op_type == "Reciprocal":
                _rms_norm(graph, node)
    model.opset_imports[CONTRIB] = 1
    _drop_unused(graph)
    for node in graph:
        # Types follow from the inputs; the stored ones may be signed.
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def _make_unsigned(graph: ir.Graph) -> None:
    """Move 8-bit encodings up by 128, except those whose integers enter or leave the graph (the cache)."""
    outside = {id(zero) for zero in _outside_zero_points(graph)}
    for zero in _activation_zero_points(graph):
        if id(zero) not in outside and zero.const_value.dtype == ir.DataType.INT8:
            zero.const_value = ir.tensor(np.array(int(zero.const_value.numpy()) + 128, dtype=np.uint8))
            zero.dtype = ir.DataType.UINT8


def _activation_zero_points(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        if node.op_type == "QuantizeLinear" and node.inputs[2].const_value.size == 1:
            yield node.inputs[2]


def _outside_zero_points(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        if node.op_type == "QuantizeLinear" and _reaches_output(node.outputs[0]):
            yield node.inputs[2]


def _reaches_output(value: ir.Value) -> bool:
    if value.is_graph_output():
        return True
    return any(
        _reaches_output(out)
        for use in value.uses()
        if use.node.op_type != "DequantizeLinear"
        for out in use.node.outputs
    )


def _integer_product(graph: ir.Graph, node: ir.Node, kernels: Kernels, exact: bool) -> bool:
    """DQ(activation) x DQ(weight) -> Q of the same type: QLinearMatMul; -> anything else: MatMulIntegerToFloat."""
    left, right = _producer(node.inputs[0], "DequantizeLinear"), _producer(node.inputs[1], "DequantizeLinear")
    if left is None or right is None or not _is_constant(right.inputs[0]):
        return False
    kind = left.inputs[2].dtype
    if kind not in EIGHT_BIT or right.inputs[2].dtype != ir.DataType.INT8:
        return False
    a, b = list(left.inputs), list(right.inputs)
    quantize = _only_consumer(node.outputs[0], "QuantizeLinear")
    if quantize is not None and quantize.inputs[2].dtype == kind and kernels.mixed_sign_exact and not exact:
        fused = ir.node("QLinearMatMul", [*a, *b, *quantize.inputs[1:]], name=node.name)
        _put(graph, quantize, fused)
        graph.remove(node, safe=True)
    else:
        inputs = [a[0], b[0], a[1], b[1], a[2], b[2]]
        _put(graph, node, ir.node("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=node.name))
    return True


def _product_with_transposed(graph: ir.Graph, node: ir.Node) -> None:
    """x MatMul DQ(Transpose(keys)) -> FusedMatMul(x, DQ(keys)): transposing inside the product costs nothing."""
    right = _producer(node.inputs[1], "DequantizeLinear")
    turn = _producer(right.inputs[0] if right is not None else node.inputs[1], "Transpose")
    if turn is None or _is_constant(turn.inputs[0]):
        return
    perm = list(turn.attributes["perm"].as_ints())
    rank = len(perm)
    if perm != [*range(rank - 2), rank - 1, rank - 2]:
        return
    keys = turn.inputs[0]
    if right is not None:
        real = ir.node("DequantizeLinear", [keys, *right.inputs[1:]], name=right.name)
        real.outputs[0].dtype = ir.DataType.FLOAT
        graph.insert_before(node, real)
        keys = real.outputs[0]
    fused = ir.node("FusedMatMul", [node.inputs[0], keys], {"transB": 1}, domain=CONTRIB, name=node.name)
    _put(graph, node, fused)


def _rms_norm(graph: ir.Graph, reciprocal: ir.Node) -> None:
    """x * (1 / sqrt(mean(x * x) + eps)) * gain -> one kernel."""
    root = _producer(reciprocal.inputs[0], "Sqrt")
    shifted = _producer(root.inputs[0], "Add") if root else None
    mean = _producer(shifted.inputs[0], "ReduceMean") if shifted else None
    square = _producer(mean.inputs[0], "Mul") if mean else None
    normed = _only_consumer(reciprocal.outputs[0], "Mul")
    scaled = _only_consumer(normed.outputs[0], "Mul") if normed else None
    if mean is None or shifted is None or square is None or normed is None or scaled is None:
        return
    x, gain = square.inputs[0], scaled.inputs[1].const_value
    axes, epsilon = mean.inputs[1].const_value, shifted.inputs[1].const_value
    if axes is None or epsilon is None or gain is None or square.inputs[1] is not x or normed.inputs[0] is not x:
        return
    if axes.numpy().tolist() != [-1] or len(gain.shape) != 1:
        return
    attributes = {"axis": -1, "epsilon": float(epsilon.numpy()), "stash_type": 1}
    fused = ir.node("SimplifiedLayerNormalization", [x, scaled.inputs[1]], attributes, name=scaled.name)
    _put(graph, scaled, fused)


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op else None


def _only_consumer(value: ir.Value, op: str) -> ir.Node | None:
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == op and not value.is_graph_output() else None


def _is_constant(value: ir.Value) -> bool:
    turn = _producer(value, "Transpose")
    return value.is_initializer() or (turn is not None and turn.inputs[0].is_initializer())


def _put(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    """`new` takes the place of `node`, output name included."""
    graph.insert_before(node, new)
    name = node.outputs[0].name
    new.outputs[0].dtype, new.outputs[0].shape = node.outputs[0].dtype, node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.outputs[0].name = name


def _drop_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
