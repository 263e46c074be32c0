"""Graph pass: shape operations move integers, not real values.

`DQ -> Reshape` becomes `Reshape -> DQ` and `Transpose -> Q` becomes `Q -> Transpose`, which changes no number.
A matrix product then has its Q and DQ as neighbours, as compilers want it, less memory moves, and ONNX Runtime has
no Q/DQ to move by itself (1.32 breaks int8 models of opset 21 when it does, with its default options).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

LAYOUT_OPS = ("Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze")


def layout_on_integers(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type in LAYOUT_OPS or node.op_type == "Concat":
            _before_dequantize(graph, node)
    for node in reversed(list(graph)):
        if node.op_type == "QuantizeLinear":
            _after_quantize(graph, node)
    _simplify(graph)


def _before_dequantize(graph: ir.Graph, node: ir.Node) -> None:
    data = list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]
    sources = [_scalar_dequantize(value) for value in data]
    first = sources[0]
    if first is None or any(s is None or not _same_encoding(s, first) for s in sources):
        return
    integers = [s.inputs[0] for s in sources if s is not None]
    moved = _copy(node, [*integers, *node.inputs[len(data) :]], integers[0].dtype, node.outputs[0].shape)
    dequantize = _copy(first, [moved.outputs[0], *first.inputs[1:]], ir.DataType.FLOAT, node.outputs[0].shape)
    graph.insert_before(node, [moved, dequantize])
    _replace(graph, node, dequantize.outputs[0])


def _after_quantize(graph: ir.Graph, quantize: ir.Node) -> None:
    layout = quantize.inputs[0].producer()
    if layout is None or len(layout.outputs[0].uses()) > 1:
        return
    if layout.op_type == "Concat":
        sources = list(layout.inputs)
    elif layout.op_type in LAYOUT_OPS and layout.inputs[0].producer() is not None:
        sources = [layout.inputs[0]]
    else:
        return
    dtype = quantize.outputs[0].dtype
    earlier = [_copy(quantize, [source, *quantize.inputs[1:]], dtype, source.shape) for source in sources]
    integers = [node.outputs[0] for node in earlier]
    moved = _copy(layout, [*integers, *layout.inputs[len(sources) :]], dtype, quantize.outputs[0].shape)
    graph.insert_before(quantize, [*earlier, moved])
    _replace(graph, quantize, moved.outputs[0])
    graph.remove(layout, safe=True)
    for node in earlier:
        _after_quantize(graph, node)


def _simplify(graph: ir.Graph) -> None:
    """Transposes that only move dimensions of size 1 are reshapes; of a chain of reshapes the last is enough."""
    for node in list(graph):
        if node.op_type == "Transpose" and _moves_only_ones(node):
            node = _as_reshape(graph, node, node.inputs[0])
        if node.op_type != "Reshape":
            continue
        source = node.inputs[0]
        while (producer := source.producer()) is not None and producer.op_type == "Reshape":
            source = producer.inputs[0]
        if source.shape == node.outputs[0].shape and not node.outputs[0].is_graph_output():
            _replace(graph, node, source)
        elif source is not node.inputs[0]:
            node.replace_input_with(0, source)


def _moves_only_ones(node: ir.Node) -> bool:
    shape = node.inputs[0].shape
    kept = [axis for axis in node.attributes["perm"].as_ints() if shape is not None and shape[axis] != 1]
    return shape is not None and node.inputs[0].producer() is not None and kept == sorted(kept)


def _as_reshape(graph: ir.Graph, node: ir.Node, source: ir.Value) -> ir.Node:
    out = node.outputs[0]
    target = ir.tensor(np.array(out.shape.numpy(), dtype=np.int64))
    shape = ir.Value(name=f"{out.name}_shape", const_value=target, type=ir.TensorType(target.dtype))
    shape.shape = ir.Shape(target.shape)
    graph.register_initializer(shape)
    reshape = ir.node("Reshape", [source, shape], name=node.name, metadata_props=dict(node.metadata_props))
    reshape.outputs[0].dtype, reshape.outputs[0].shape = out.dtype, out.shape
    graph.insert_before(node, reshape)
    _replace(graph, node, reshape.outputs[0])
    return reshape


def _scalar_dequantize(value: ir.Value | None) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = ir.convenience.get_const_tensor(producer.inputs[1])
    return producer if scale is not None and scale.size == 1 else None


def _same_encoding(a: ir.Node, b: ir.Node) -> bool:
    for ours, theirs in zip(a.inputs[1:], b.inputs[1:], strict=True):
        x, y = ir.convenience.get_const_tensor(ours), ir.convenience.get_const_tensor(theirs)
        if x is None or y is None or x.dtype != y.dtype or not np.array_equal(x.numpy(), y.numpy()):
            return False
    return True


def _copy(node: ir.Node, inputs: list[ir.Value | None], dtype: ir.DataType | None, shape: ir.Shape | None) -> ir.Node:
    """The same operation on other inputs, with the original's place in the module tree."""
    copy = ir.node(node.op_type, inputs, dict(node.attributes), metadata_props=dict(node.metadata_props))
    copy.outputs[0].dtype, copy.outputs[0].shape = dtype, shape
    return copy


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
