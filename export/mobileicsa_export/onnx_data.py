"""ONNX models on the disk, and one external data file shared by several: equal tensors are stored once."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import onnx_ir as ir

from mobileicsa.io.atomic import writing

MIN_EXTERNAL_BYTES = 256
PAGE_BYTES = 4096
MIN_ALIGNED_BYTES = 1 << 20  # below, page alignment would only waste space


def save_model(model: ir.Model, path: Path) -> None:
    """WriteFault where the disk does not take it."""
    with writing(path):
        ir.save(model, path)


class SharedData:
    """Writes tensors one by one, so that memory holds one of them at a time. WriteFault where the disk is full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[tuple[ir.DataType, str], tuple[int, int]] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> SharedData:
        with writing(self.path):
            self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            # Writes what is left in the buffer; behind an error that would only say the same again.
            with writing(self.path) if error is None else suppress(OSError):
                self._file.close()

    def save(self, model: ir.Model, path: Path) -> None:
        """Write the model, its larger initialisers into this file and references to them into `path`."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= MIN_EXTERNAL_BYTES:
                value.const_value = self._store(tensor, value.name or "")
        save_model(model, path)

    def _store(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        if self._file is None:
            raise ValueError("SharedData is not open")
        data = tensor.tobytes()
        key = (tensor.dtype, hashlib.sha256(data).hexdigest())
        if key not in self._places:
            with writing(self.path):
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
