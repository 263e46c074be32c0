"""What a TOSA flatbuffer holds, read back from the file: tensors by type, operators by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

INTEGERS = frozenset({"BOOL", "INT4", "INT8", "INT16", "INT32", "INT48"})
NOT_DATA = frozenset({"SHAPE"})
CONSTANTS = frozenset({"CONST", "CONST_SHAPE"})
PRODUCTS = frozenset({"CONV2D", "MATMUL"})


@dataclass(frozen=True)
class Census:
    """`dtypes` counts tensors, constants included; `operators` are (kind, is integer) in the file's order."""

    dtypes: Counter[str]
    operators: tuple[tuple[str, bool], ...]

    @property
    def real_valued(self) -> int:
        """Tensors of any type that is not an integer one, a type unknown to us included."""
        return sum(count for name, count in self.dtypes.items() if name not in INTEGERS)


def census(flatbuffer: bytes) -> Census:
    from tosa.DType import DType
    from tosa.Op import Op
    from tosa.TosaGraph import TosaGraph

    types, kinds = _names(DType), _names(Op)
    dtypes: Counter[str] = Counter()
    operators: list[tuple[str, bool]] = []
    for block in _blocks(TosaGraph.GetRootAs(flatbuffer, 0)):
        tensors = [block.Tensors(i) for i in range(block.TensorsLength())]
        own = {tensor.Name(): types[tensor.Type()] for tensor in tensors}
        dtypes.update(name for name in own.values() if name not in NOT_DATA)
        for operator in (block.Operators(i) for i in range(block.OperatorsLength())):
            kind = kinds[operator.Op()]
            if kind not in CONSTANTS:
                used = [operator.Inputs(i) for i in range(operator.InputsLength())]
                used += [operator.Outputs(i) for i in range(operator.OutputsLength())]
                integer = all(own.get(name, "SHAPE") in INTEGERS | NOT_DATA for name in used)
                operators.append((kind, integer))
    return Census(dtypes, tuple(operators))


def _blocks(graph: Any) -> Iterator[Any]:
    for region in (graph.Regions(i) for i in range(graph.RegionsLength())):
        yield from (region.Blocks(i) for i in range(region.BlocksLength()))


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}
