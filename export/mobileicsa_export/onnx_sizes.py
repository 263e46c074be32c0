"""Graph pass: free the sizes that an export fixed, the number of tokens and of past rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from mobileicsa.core.spec import ModelSpec
from mobileicsa_export.onnx_constant import constant

POSITIONS, KEYS, POSITION_IDS = "positions", "keys", "position_ids"


class Sizes:
    """The number of tokens and of past rows in an exported graph, which stand nowhere but in its reshapes.

    They are chosen to be no size of the model, so that `free` can tell what they are.
    """

    def __init__(self, spec: ModelSpec, prefix: int) -> None:
        self.prefix, self.group = prefix, spec.num_heads // spec.num_kv_heads
        self.own = {spec.hidden_size, spec.intermediate_size, spec.vocab_size, spec.head_dim}
        self.own |= {
            spec.num_heads,
            spec.num_kv_heads,
            spec.num_heads * spec.head_dim,
            spec.num_kv_heads * spec.head_dim,
        }
        self.tokens = 1009
        while self.own & {self.tokens, self.rows, self.keys}:
            self.tokens += 2

    @property
    def past(self) -> int:
        return self.tokens + 4

    @property
    def rows(self) -> int:
        return self.group * self.tokens

    @property
    def keys(self) -> int:
        return self.prefix + self.past + self.tokens

    def free(self, graph: ir.Graph) -> None:
        """Put the sizes of each call in place of those of the export."""
        make = _Maker(graph)
        ids, positions, keys, *past = graph.inputs
        places = ir.Value(name=POSITION_IDS, type=ir.TensorType(ir.DataType.INT64))
        tokens = make("Shape", [ids], {"start": 1, "end": 2}, "tokens")
        before = make("Shape", [past[0]], {"start": 2, "end": 3}, "past")
        first = make("Squeeze", [places, make.vector([0], "axis")], {}, "first_row")
        if self.prefix:
            before = make("Add", [before, make.vector([self.prefix], "prefix")], {}, "before")
            first = make("Add", [first, make.vector([self.prefix], "prefix")], {}, POSITIONS)
        total = make("Add", [before, tokens], {}, "total")
        zero, one = make.scalar(0, "zero"), make.scalar(1, "one")
        every = make("Range", [zero, make("Squeeze", [total], {}, "count"), one], {}, KEYS)
        for old, new in ((positions, first), (keys, every)):
            old.replace_all_uses_with(new)
            graph.inputs.remove(old)
        graph.inputs.insert(1, places)
        marks = {self.tokens: tokens, self.rows: make("Mul", [tokens, make.vector([self.group], "group")], {}, "rows")}
        marks[self.keys] = total
        known: dict[tuple[int, ...], ir.Value] = {}
        for node in list(graph):
            if node.op_type == "Reshape" and (stored := node.inputs[1].const_value) is not None:
                shape = tuple(int(size) for size in stored.numpy())
                if marks.keys() & set(shape):
                    if shape not in known:
                        known[shape] = self._shape(make, shape, marks)
                    node.replace_input_with(1, known[shape])
        _symbolic(graph)

    @staticmethod
    def _shape(make: _Maker, shape: tuple[int, ...], marks: Mapping[int, ir.Value]) -> ir.Value:
        """One size of the call may be left to the runtime, further ones must be given."""
        free = [size for size in shape if size in marks]
        given = [-1 if size == free[0] else size for size in shape]
        label = "x".join(str(marks[size].name).rpartition("/")[2] if size in marks else str(size) for size in shape)
        if len(free) == 1:
            return make.vector(given, label)
        parts = [marks[size] if size in marks else make.vector([size], f"size/{size}") for size in given]
        return make("Concat", parts, {"axis": 0}, label)


class _Maker:
    """Puts int64 nodes and constants in front of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self._before = graph, next(iter(graph))

    def __call__(self, op: str, inputs: list[ir.Value], attributes: dict[str, int], name: str) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"inputs/{name}")
        node.outputs[0].name, node.outputs[0].dtype = f"inputs/{name}", ir.DataType.INT64
        self.graph.insert_before(self._before, node)
        return node.outputs[0]

    def vector(self, numbers: list[int], name: str) -> ir.Value:
        return self._constant(np.array(numbers, dtype=np.int64), name)

    def scalar(self, number: int, name: str) -> ir.Value:
        return self._constant(np.array(number, dtype=np.int64), name)

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        full = f"inputs/{name}/value"
        held = self.graph.initializers.get(full)
        return held if held is not None else constant(self.graph, full, ir.tensor(array))


def _symbolic(graph: ir.Graph) -> None:
    """Names for the free sizes of what enters and leaves; what lies between follows from it."""
    ids, places, *past = graph.inputs
    logits, *present = graph.outputs
    ids.shape, places.shape = ir.Shape((1, "tokens")), ir.Shape((1, "tokens"))
    logits.shape = ir.Shape((1, "tokens", logits.shape[2]))
    for values, name in ((past, "past"), (present, "total")):
        for value in values:
            value.shape = ir.Shape((1, value.shape[1], name, value.shape[3]))
