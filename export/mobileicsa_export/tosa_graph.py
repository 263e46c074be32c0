"""`TosaGraph`: a TOSA 1.0 flatbuffer in the making, one basic block of integer operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = (1, 0, 0)
NUMPY = {"BOOL": np.bool_, "INT4": np.int8, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "SHAPE": np.int64}
MAX_RANK = 6  # of TOSA's level 8K


@dataclass(frozen=True)
class Tensor:
    """`dtype` is a key of NUMPY; `limits` the lowest and highest value where they are known to be closer than its."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    limits: tuple[int, int] | None = None


class TosaGraph:
    """Operators in the order of the calls; every output tensor's shape and type is given by the caller."""

    def __init__(self) -> None:
        import tosa_serializer

        self._ts = tosa_serializer
        self._graph = tosa_serializer.TosaSerializer(
            "",
            tosa_serializer.ConstMode.EMBED,
            *VERSION,
            False,  # not a draft of the next version
        )
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}
        self._count = 0
        self.operators: Counter[str] = Counter()

    def input(self, name: str, shape: Sequence[int], dtype: str) -> Tensor:
        tensor = Tensor(name, tuple(shape), dtype)
        made = self._ts.TosaSerializerTensor(name, list(shape), self._dtype(dtype))
        self._graph.addInputTensor(made)
        return tensor

    def output(self, tensor: Tensor) -> None:
        self._graph.addOutputTensor(self._graph.currRegion.currBasicBlock.tensors[tensor.name])

    def constant(self, values: NDArray[Any] | Sequence[int], dtype: str) -> Tensor:
        """One tensor for all constants of the same type, shape and values."""
        array: NDArray[Any] = np.ascontiguousarray(values, dtype=NUMPY[dtype])
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = Tensor(self._name(), array.shape, dtype)
            self._graph.addConst(list(array.shape), self._dtype(dtype), array, name=tensor.name)
            self._constants[key] = tensor
        return self._constants[key]

    def operator(
        self, name: str, inputs: Sequence[Tensor], shape: Sequence[int], dtype: str, **attributes: Any
    ) -> Tensor:
        """`name` is TOSA's; attributes by the names of its specification."""
        tensor = Tensor(self._name(), tuple(shape), dtype)
        self._graph.currRegion.currBasicBlock.addTensor(tensor.name, list(shape), self._dtype(dtype))
        made = self._ts.TosaSerializerAttribute()
        kind = "".join(part.capitalize() for part in name.split("_")).replace("2d", "2d").replace("Matmul", "MatMul")
        getattr(made, f"{kind}Attribute")(**attributes)
        self._graph.addOperator(getattr(self._ts.Op, name), [t.name for t in inputs], [tensor.name], made)
        self.operators[name] += 1
        return tensor

    def bytes(self) -> bytes:
        found: bytes = self._graph.serialize()
        return found

    def enum(self, kind: str, name: str) -> Any:
        return getattr(getattr(self._ts, kind), name)

    def _dtype(self, name: str) -> Any:
        return getattr(self._ts.DType, name)

    def _name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    # Operators that need more than their inputs; the rest is called by name.

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        if tuple(shape) == x.shape:
            return x
        return self.operator("RESHAPE", [x, self.constant(shape, "SHAPE")], shape, x.dtype)

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        return self.operator("TRANSPOSE", [x], [x.shape[i] for i in order], x.dtype, perms=list(order))

    def slice(self, x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
        if tuple(size) == x.shape:
            return x
        where = [self.constant(start, "SHAPE"), self.constant(size, "SHAPE")]
        return self.operator("SLICE", [x, *where], size, x.dtype)

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.operator("CONCAT", parts, shape, parts[0].dtype, axis=axis)

    def binary(self, name: str, a: Tensor, b: Tensor, dtype: str | None = None) -> Tensor:
        """Broadcasts, the operand of lower rank with leading ones."""
        rank = max(len(a.shape), len(b.shape))
        a, b = (self.reshape(x, (1,) * (rank - len(x.shape)) + x.shape) for x in (a, b))
        shape = np.broadcast_shapes(a.shape, b.shape)
        attributes: dict[str, Any] = {}
        if name in ("MAXIMUM", "MINIMUM"):
            attributes = self._nan_mode()
        elif name == "ARITHMETIC_RIGHT_SHIFT":
            attributes = {"round": False}
        return self.operator(name, [a, b], shape, dtype or a.dtype, **attributes)

    def _nan_mode(self) -> dict[str, Any]:
        return {"nan_mode": self.enum("NanPropagationMode", "PROPAGATE")}

    def multiply(self, a: Tensor, b: Tensor, shift: int) -> Tensor:
        """INT32 product, rounded by 2**-shift."""
        rank = max(len(a.shape), len(b.shape))
        a, b = (self.reshape(x, (1,) * (rank - len(x.shape)) + x.shape) for x in (a, b))
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self.operator("MUL", [a, b, self.constant([shift], "INT8")], shape, "INT32")

    def gather(self, table: NDArray[Any] | Tensor, index: Tensor, dtype: str) -> Tensor:
        """Rows (..., C) of `table` (K, C) at `index` (...), INT32."""
        rows = table if isinstance(table, Tensor) else self.constant(table, dtype)
        size, width = int(np.prod(index.shape)), rows.shape[1]
        inputs = [self.reshape(rows, (1, *rows.shape)), self.reshape(index, (1, size))]
        return self.operator("GATHER", inputs, (1, size, width), dtype)

    def reduce(self, name: str, x: Tensor, axis: int) -> Tensor:
        shape = [1 if i == axis else size for i, size in enumerate(x.shape)]
        more = self._nan_mode() if name == "REDUCE_MAX" else {}
        return self.operator(name, [x], shape, x.dtype, axis=axis, **more)

    def rescale(
        self,
        x: Tensor,
        scale: float | NDArray[np.float64],
        dtype: str,
        *,
        zero_in: int = 0,
        zero_out: int = 0,
    ) -> Tensor:
        """round(scale * (x - zero_in)) + zero_out, ties up, saturated; one scale, or one per index of the last axis."""
        pairs = [fixed_point(float(s)) for s in np.atleast_1d(scale)]
        inputs = [
            x,
            self.constant([multiplier for multiplier, _ in pairs], "INT32"),
            self.constant([shift for _, shift in pairs], "INT8"),
            self.constant([zero_in], x.dtype),
            self.constant([zero_out], dtype),
        ]
        return self.operator(
            "RESCALE",
            inputs,
            x.shape,
            dtype,
            scale32=True,
            rounding_mode=self.enum("RoundingMode", "SINGLE_ROUND"),
            per_channel=len(pairs) > 1,
            input_unsigned=False,
            output_unsigned=False,
        )


def fixed_point(scale: float) -> tuple[int, int]:
    """(multiplier, shift) of RESCALE: multiplier * 2**-shift, 31 bits of the scale."""
    mantissa, exponent = np.frexp(scale)
    multiplier = round(float(mantissa) * 2**31)
    shift = 31 - int(exponent)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift - 1
    if shift > 62:
        multiplier, shift = multiplier >> min(shift - 62, 31), 62
    if shift < 2:
        raise ValueError(f"scale {scale} is too large for RESCALE")
    return multiplier, shift
