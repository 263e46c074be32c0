"""From the portable QDQ graph to the one that Qualcomm's HTP takes whole: the passes in their order.

Every pass keeps the numbers: on ONNX Runtime's CPU the graph gives the portable one's integers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.onnx_constant import constant
from mobileicsa_export.onnx_graph import drop_unused
from mobileicsa_export.qnn_moves import encode_moves, make_unsigned
from mobileicsa_export.qnn_widths import one_width

ONE = "one"


def to_htp_form(model: ir.Model) -> None:
    """Rewrite in place. The graph's inputs and outputs become unsigned integers, the logits integers too."""
    graph = model.graph
    _integer_logits(graph)
    _store_transposed(graph)
    _select_stored_integers(graph)
    make_unsigned(graph)
    encode_moves(graph)
    _divide_one(graph)
    one_width(graph)
    drop_unused(graph)


def logits_encoding(model: ir.Model) -> tuple[float, int]:
    """Scale and zero point of the integer logits of a graph in this form."""
    quantize = model.graph.outputs[0].producer()
    assert quantize is not None
    scale, zero = (ir.convenience.get_const_tensor(value) for value in quantize.inputs[1:3])
    assert scale is not None
    assert zero is not None
    return float(scale.numpy()), int(zero.numpy())


def _integer_logits(graph: ir.Graph) -> None:
    """The last DQ is the caller's: its output would be the graph's only real-valued tensor."""
    last = graph.outputs[0].producer()
    if last is None or last.op_type != "DequantizeLinear":
        raise Unsupported("logits", "are not the dequantised integers of an edge: freeze the model first")
    name, integers = graph.outputs[0].name, last.inputs[0]
    graph.outputs[0] = integers
    graph.remove(last, safe=True)
    integers.name = name


def _store_transposed(graph: ir.Graph) -> None:
    """A tied head's weight becomes a constant of its own: the embedding's rows get another encoding here."""
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Transpose" else None
        if table is None or not table.is_initializer() or table.const_value is None:
            continue
        tensor = table.const_value

        def turned(tensor: ir.TensorProtocol = tensor) -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(tensor.numpy().T), dtype=tensor.dtype)

        shape = ir.Shape(tuple(reversed(tensor.shape.numpy())))
        lazy = ir.LazyTensor(turned, dtype=tensor.dtype, shape=shape)
        node.outputs[0].replace_all_uses_with(constant(graph, f"{table.name}_t", lazy))
        graph.remove(node, safe=True)


def _select_stored_integers(graph: ir.Graph) -> None:
    """Cast(Where(condition, a, b)) of wide constants becomes Where of constants of the type that is cast to."""
    for node in list(graph):
        where = node.inputs[0].producer() if node.op_type == "Cast" else None
        if where is None or where.op_type != "Where":
            continue
        dtype = ir.DataType(node.attributes["to"].as_int())
        for position in (1, 2):
            wide = where.inputs[position]
            tensor = ir.convenience.get_const_tensor(wide)
            if tensor is None:
                raise Unsupported("Where", f"{where.name}: selects numbers that are not constants")
            # Rank 1 at least: the provider does not select scalars.
            narrow = ir.tensor(np.atleast_1d(tensor.numpy()).astype(dtype.numpy()), dtype=dtype)
            where.replace_input_with(position, constant(graph, f"{where.name}/{wide.name}", narrow))
        where.outputs[0].dtype = dtype
        node.outputs[0].replace_all_uses_with(where.outputs[0])
        graph.remove(node, safe=True)


def _divide_one(graph: ir.Graph) -> None:
    """Reciprocal becomes a division of 1.

    The provider divides too, but encodes the 1 like the divisor: where all divisors are below 1 it saturates (half of
    the 16-bit range wrong on the emulator).
    """
    nodes = [node for node in graph if node.op_type == "Reciprocal"]
    if not nodes:
        return
    stored = {"codes": np.array([1 << 15], np.uint16), "scale": np.float32(2.0**-15), "zero_point": np.uint16(0)}
    parts = [constant(graph, f"{ONE}/{name}", ir.tensor(value)) for name, value in stored.items()]
    for node in nodes:
        one = ir.node("DequantizeLinear", parts, name=f"{node.name}/{ONE}")
        one.outputs[0].dtype, one.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([1])
        quotient = ir.node("Div", [one.outputs[0], node.inputs[0]], name=node.name)
        quotient.outputs[0].dtype, quotient.outputs[0].shape = ir.DataType.FLOAT, node.outputs[0].shape
        graph.insert_before(node, [one, quotient])
        node.outputs[0].replace_all_uses_with(quotient.outputs[0])
        graph.remove(node, safe=True)
