"""Check of a GGUF file's header against the format, and its content as plain values."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileicsa.core.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 20
MAX_ELEMENTS = 1 << 40
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
# GGUF value type -> struct format
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One stored tensor: `shape` in row-major order, `offset` from the start of the file, `kind` its ggml type."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """Reads values one after another; never past the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise InputError(f"{self.path}: cut off: byte {self.at} declares {size} more bytes than the file has")
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def count(self, what: str) -> int:
        value: int = self.number("Q")
        if value > MAX_ENTRIES:
            raise InputError(f"{self.path}: {value} {what} at byte {self.at - 8}, at most {MAX_ENTRIES} are read")
        return value

    def text(self) -> str:
        start = self.at
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: text at byte {start} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != ARRAY:
            raise InputError(f"{self.path}: unknown value type {kind} at byte {self.at}")
        item, length = self.number("I"), self.count("array items")
        if item in _SCALARS:
            code = _SCALARS[item]
            return list(struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize("<" + code))))
        if item == STRING:
            return [self.text() for _ in range(length)]
        raise InputError(f"{self.path}: arrays of type {item} are not read (byte {self.at})")


def read_gguf_header(path: Path) -> GgufHeader:
    """Fields and tensor table of a GGUF file (version 2 or 3, little-endian)."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise InputError(f"{path}: is not a GGUF file (it does not start with 'GGUF')")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Cursor(path, data))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(cursor: _Cursor) -> GgufHeader:
    cursor.take(4)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise InputError(f"{cursor.path}: GGUF version {version} is not one of {VERSIONS} (or is big-endian)")
    tensor_count, field_count = cursor.count("tensors"), cursor.count("fields")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.text()
        if key in fields:
            raise InputError(f"{cursor.path}: field {key[:100]!r} occurs twice")
        fields[key] = cursor.value(cursor.number("I"))
    table: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        name = cursor.text()
        if name in table:
            raise InputError(f"{cursor.path}: tensor {name[:100]!r} occurs twice")
        table[name] = _tensor(cursor, name)
    return GgufHeader(fields=fields, tensors=_placed(cursor, fields, table))


def _tensor(cursor: _Cursor, name: str) -> GgufTensor:
    sides = cursor.number("I")
    if not 1 <= sides <= 4:
        raise InputError(f"{cursor.path}: tensor {name!r} has {sides} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(sides))[::-1]
    elements = 1
    for side in shape:
        elements *= side
        if elements > MAX_ELEMENTS:
            raise InputError(f"{cursor.path}: shape {list(shape)} of tensor {name!r} overflows")
    return GgufTensor(shape=shape, kind=cursor.number("I"), offset=cursor.number("Q"))


def _placed(cursor: _Cursor, fields: dict[str, Any], table: dict[str, GgufTensor]) -> dict[str, GgufTensor]:
    """The table with offsets counted from the start of the file."""
    alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"{cursor.path}: general.alignment {alignment!r} is not a power of two")
    start = -(-cursor.at // alignment) * alignment
    return {
        name: GgufTensor(shape=entry.shape, kind=entry.kind, offset=start + entry.offset)
        for name, entry in table.items()
    }
