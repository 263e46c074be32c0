"""Graph pass: free the number of cache rows that a file fixed. Used in memory at open.

The file says the whole context, as compilers for static shapes want it; a runtime that takes any size attends
to the rows that a conversation has.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mobileicsa_export.onnx_constant import constant

ROWS = "rows"


def free_rows(graph: ir.Graph) -> bool:
    """Rewrite in place, before types and shapes are dropped; False, and nothing done, for another graph than ours."""
    past = [value for value in graph.inputs if (value.name or "").startswith("past_key_values.")]
    if not past or past[0].shape is None or len(past[0].shape) != 4:
        return False
    context = past[0].shape[2]
    slots = [value for value in graph.initializers.values() if _counts_to(value, context)]
    if not slots:
        return False
    before = next(iter(graph))
    start = ir.node("Shape", [past[0]], {"start": 2, "end": 3}, name=f"inputs/{ROWS}")
    graph.insert_before(before, start)
    for value in slots:
        uses = list(value.uses())
        last = len(value.shape) - 1
        ends = [_vector(graph, f"{value.name}/{name}", number) for name, number in (("first", 0), ("axis", last))]
        piece = ir.node("Slice", [value, ends[0], start.outputs[0], ends[1]], name=f"{value.name}/{ROWS}")
        graph.insert_before(before, piece)
        for use in uses:
            use.node.replace_input_with(use.idx, piece.outputs[0])
    for value in past:
        value.shape = ir.Shape((*value.shape[:2], ROWS, value.shape[3]))
    for node, shape in _fixed_shapes(graph):
        # Left to the runtime: right for a size that does not change, too.
        if shape[-1] > 1:
            fill = -1 if node.op_type == "Reshape" else 1
            node.replace_input_with(1, _vector(graph, f"{node.outputs[0].name}/{ROWS}", *shape[:-1], fill))
    return True


def _fixed_shapes(graph: ir.Graph) -> Iterator[tuple[ir.Node, list[int]]]:
    """Shapes whose last size may be one of keys: those of scores, probabilities and masks."""
    for node in list(graph):
        if node.op_type not in ("Reshape", "Expand") or node.inputs[1].const_value is None:
            continue
        shape = [int(size) for size in node.inputs[1].const_value.numpy()]
        before = node.inputs[0].shape
        if -1 not in shape and 0 not in shape and before is not None and len(before) and before[-1] == shape[-1]:
            yield node, shape


def _counts_to(value: ir.Value, context: object) -> bool:
    """0, 1, … up to the last slot, along the last dimension."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size != context:
        return False
    return bool((tensor.numpy().reshape(-1) == np.arange(tensor.size)).all()) and tensor.shape[-1] == context


def _vector(graph: ir.Graph, name: str, *numbers: int) -> ir.Value:
    return constant(graph, name, ir.tensor(np.array(numbers, dtype=np.int64)))
