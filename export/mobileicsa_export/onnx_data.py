"""One external data file shared by several ONNX models: equal tensors are stored once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import onnx_ir as ir

MIN_EXTERNAL_BYTES = 256
PAGE_BYTES = 4096
MIN_ALIGNED_BYTES = 1 << 20  # below, page alignment would only waste space


class SharedData:
    """Writes tensors one by one, so that memory holds one of them at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[tuple[ir.DataType, str], tuple[int, int]] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> SharedData:
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def move(self, model: ir.Model) -> None:
        """Put the model's larger initialisers into the file and leave references."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= MIN_EXTERNAL_BYTES:
                value.const_value = self._store(tensor, value.name or "")

    def _store(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        if self._file is None:
            raise ValueError("SharedData is not open")
        data = tensor.tobytes()
        key = (tensor.dtype, hashlib.sha256(data).hexdigest())
        if key not in self._places:
            offset = self._file.tell()
            if len(data) >= MIN_ALIGNED_BYTES:
                self._file.write(bytes(-offset % PAGE_BYTES))
                offset = self._file.tell()
            self._file.write(data)
            self._places[key] = (offset, len(data))
        offset, length = self._places[key]
        shape = ir.Shape(tuple(int(size) for size in tensor.shape))
        return ir.ExternalTensor(
            self.path.name, offset, length, tensor.dtype, shape=shape, name=name, base_dir=self.path.parent
        )
