"""Check of a safetensors file's header against the format, before any reader maps the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileicsa.core.errors import InputError
from mobileicsa.io.json_file import parse_json

MAX_HEADER_BYTES = 100_000_000
MAX_ELEMENTS = 1 << 40
PREFIX_BYTES = 8
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_DTYPE_HINT = "convert the checkpoint to float32, float16 or bfloat16 (quantized ones: dequantise first)"


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a header: `begin` and `end` are byte offsets into the data that follows the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, if the whole header holds."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(PREFIX_BYTES)
            length = int.from_bytes(prefix, "little")
            start = stream.read(16)
            if len(prefix) < PREFIX_BYTES or length > size - PREFIX_BYTES or not start.startswith(b"{"):
                raise InputError(f"{path}: {_diagnosis(prefix + start, length, size)}", hint=_remedy(prefix + start))
            if length > MAX_HEADER_BYTES:
                raise InputError(f"{path}: header of {length} bytes, the format allows {MAX_HEADER_BYTES}")
            stream.seek(PREFIX_BYTES)
            header = stream.read(length)
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found", hint="the checkpoint is incomplete; download it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    fields = parse_json(header, f"{path} (header)", max_depth=8)
    _check_metadata(path, fields.pop("__metadata__", {}))
    entries = {name: _entry(path, name, value) for name, value in fields.items()}
    _check_extents(path, entries, size - PREFIX_BYTES - length)
    return entries


def _diagnosis(start: bytes, length: int, size: int) -> str:
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive (a PyTorch pickle file?), not safetensors"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a Python pickle, not safetensors"
    if start.startswith(b"GGUF"):
        return "is a GGUF file, not safetensors"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights"
    if size < PREFIX_BYTES:
        return f"only {size} bytes long, cut off?"
    if int.from_bytes(start[:PREFIX_BYTES], "big") <= size:
        return "header length is big-endian; the format is little-endian"
    if length > size - PREFIX_BYTES:
        return f"header of {length} bytes in a file of {size} bytes, cut off or not safetensors"
    return "header does not start with '{', not safetensors"


def _remedy(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "run `git lfs pull` in the model folder"
    return "only safetensors and GGUF weights are read; download the file again or convert it"


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: __metadata__ must map names to strings")
    for key, value in metadata.items():
        if key.lower().startswith(("byteorder", "endian")) and "big" in value.lower():
            raise InputError(f"{path}: claims big-endian data ({key}={value}); the format is little-endian")


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    where = f"{path}: tensor {name[:200]!r}"
    if not name or not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise InputError(f"{where}: dtype {dtype} is not one of {', '.join(ITEM_BYTES)}", hint=_DTYPE_HINT)
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise InputError(f"{where}: shape and data_offsets must be lists of integers of at least 0")
    elements = 1
    for side in shape:
        elements *= side
        if elements > MAX_ELEMENTS:
            raise InputError(f"{where}: shape {shape} overflows")
    begin, end = offsets
    if end - begin != elements * ITEM_BYTES[dtype]:
        raise InputError(f"{where}: {end - begin} bytes for shape {shape} of {dtype}")
    return TensorEntry(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _counts(value: Any) -> bool:
    # bool is an int in Python, but true is not a size.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_extents(path: Path, entries: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """Without gaps or overlaps nothing can hide in the file, and no byte is counted twice."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise InputError(f"{path}: tensor {name!r} {kind} (starts at {entry.begin}, expected {position})")
        position = entry.end
    if position != data_bytes:
        raise InputError(
            f"{path}: header declares {position} bytes of tensors, the file holds {data_bytes}",
            hint="the file was cut off or added to; download it again",
        )
