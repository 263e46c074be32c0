"""A .pte's segments: bytes that lie behind the program and that it names by offset and size; equal ones kept once."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program

Bytes = bytes | mmap.mmap

PROGRAM_SIZE, SEGMENTS_START, SEGMENTS_SIZE = 16, 24, 32  # byte positions of uint64 fields of the extended header
OFFSET_FIELD = 4  # of a DataSegment, in its vtable
CONSTANT_ALIGNMENT = 16
# Below, a second copy costs less than it would to look for it.
MIN_SHARED_BYTES = 1 << 12


def read_program(data: Bytes) -> Program:
    """The flatbuffer at the front of a .pte, whose fields are read where they lie."""
    from executorch.exir._serialize._flatbuffer_program import _patch_generated_flatbuffer_aliases
    from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program

    _patch_generated_flatbuffer_aliases()
    return Program.GetRootAs(data[: _field(data, PROGRAM_SIZE)], 0)


def read_segment(data: Bytes, program: Program, index: int) -> bytes:
    entry = program.Segments(index)
    start = _field(data, SEGMENTS_START) + entry.Offset()
    return data[start : start + entry.Size()]


def store_equal_bytes_once(path: Path) -> int:
    """Drop named data that the program's constants hold too, in place; returns the bytes saved.

    A delegate takes its weights by name, the program its constants by offset, and ExecuTorch's writer keeps the two
    apart: a tied head's weight is in both. Segments may overlap, so that its name can point into the constants.
    """
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as data:
            program, base, end = read_program(data), _field(data, SEGMENTS_START), _field(data, SEGMENTS_SIZE)
            segments = [program.Segments(i) for i in range(program.SegmentsLength())]
            offsets = [entry.Offset() for entry in segments]
            constants = _constants(program)
            for index in sorted({program.NamedData(i).SegmentIndex() for i in range(program.NamedDataLength())}):
                size, here = segments[index].Size(), base + offsets[index]
                if size < MIN_SHARED_BYTES or any(start == offsets[index] for start, _ in constants):
                    continue
                for start, room in constants:
                    fits = size <= room < size + CONSTANT_ALIGNMENT
                    if fits and data[base + start : base + start + size] == data[here : here + size]:
                        behind = min((o for o in offsets if o > offsets[index]), default=end)
                        saved = behind - offsets[index]
                        data.move(here, base + behind, end - behind)
                        offsets, end = [o - saved if o >= behind else o for o in offsets], end - saved
                        offsets[index] = start
                        break
            for entry, offset in zip(segments, offsets, strict=True):
                if offset != entry.Offset():
                    struct.pack_into("<Q", data, _position(entry), offset)
            struct.pack_into("<Q", data, SEGMENTS_SIZE, end)
            before = len(data)
        file.truncate(base + end)
    return before - base - end


def _constants(program: Program) -> list[tuple[int, int]]:
    """Offset of every constant among the segments, and the bytes up to the next one."""
    held = program.ConstantSegment()
    if held is None or not held.OffsetsLength():
        return []
    whole = program.Segments(held.SegmentIndex())
    starts = [held.Offsets(i) for i in range(held.OffsetsLength())]
    return [(whole.Offset() + a, b - a) for a, b in zip(starts, [*starts[1:], whole.Size()], strict=True)]


def _field(data: Bytes, position: int) -> int:
    value: int = struct.unpack_from("<Q", data, position)[0]
    return value


def _position(entry: Any) -> int:
    """Where in the file a segment's offset is written."""
    table = entry._tab
    return int(table.Pos + table.Offset(OFFSET_FIELD))
