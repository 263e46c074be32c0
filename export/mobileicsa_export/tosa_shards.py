"""Shard files of a folder: `<method>-<shard>.tosa` and, written behind it, its record `<method>-<shard>.json`.

A record says what the file was made from, so that a write that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mobileicsa.core.errors import MobileICSAError, SchemeError, VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import write_bytes
from mobileicsa.io.hashing import sha256_bytes, sha256_parts
from mobileicsa.io.json_file import read_json
from mobileicsa.io.paths import inside
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.methods import method_lengths
from mobileicsa.program.qdq import QdqEdge
from mobileicsa.program.shards import Shard, export_shard, shards
from mobileicsa_export.tosa_census import census
from mobileicsa_export.tosa_lowering import lower

logger = logging.getLogger(__name__)

INDEX = "shards.json"
MAX_JSON_BYTES = 1 << 24
# Raised when the same program is lowered to other operators than before: older files are then made anew.
FORM = 10
AGAIN = "export it again"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Record:
    """`inputs`, `outputs`: (name, shape, TOSA type) in the flatbuffer's order. `program` counts the program's
    operators that were lowered (Q/DQ left out), `dtypes` the flatbuffer's tensors."""

    file: str
    content: str
    sha256: str
    bytes: int
    inputs: list[tuple[str, list[int], str]]
    outputs: list[tuple[str, list[int], str]]
    program: dict[str, int]
    dtypes: dict[str, int]
    float_tensors: int


def write_shards(decoder: Decoder, target: Target, folder: Path) -> dict[str, list[Record]]:
    """The shards of both methods by method, lowered or found whole; the index is written last."""
    if target.nonlinear != "primitive" or not isinstance(decoder.embed.out, QdqEdge):
        raise SchemeError(
            f"target {target.name}: TOSA needs a frozen decoder with every inner edge encoded",
            hint="use a target with nonlinear: primitive and an artifact, not a float model",
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        method: [_one(shard, method, folder) for shard in shards(decoder, target, method)]
        for method in method_lengths(target)
    }
    logits = decoder.head.logits
    assert isinstance(logits, QdqEdge)
    index = {
        **identity(decoder.spec, target),
        "logits": {"scale": logits.encoding.scale[0], "zero_point": logits.encoding.zero_point[0]},
        "methods": {method: [Path(r.file).stem for r in records] for method, records in written.items()},
    }
    write_bytes(folder / INDEX, json.dumps(index, indent=1).encode())
    return written


def files(folder: Path, written: dict[str, list[Record]], index: str = INDEX) -> tuple[Path, ...]:
    names = [name for records in written.values() for r in records for name in (r.file, f"{Path(r.file).stem}.json")]
    return (*(folder / name for name in names), folder / index)


def identity(spec: ModelSpec, target: Target) -> dict[str, Any]:
    """What must agree between a folder and the model and target it is opened for."""
    return {"model": sha256_bytes(repr(spec).encode()), "context": target.context, "chunk": target.prefill_chunk}


def _one(shard: Shard, method: str, folder: Path) -> Record:
    name = f"{method}-{shard.name}"
    content = content_of(shard)
    found = _whole(folder, name, content)
    if found is not None:
        logger.info("%s: already there", name)
        return found
    started = time.monotonic()
    lowered = lower(export_shard(shard), shard.inputs, shard.outputs)
    counted = census(lowered.flatbuffer)
    write_bytes(folder / f"{name}.tosa", lowered.flatbuffer)
    record = Record(
        file=f"{name}.tosa",
        content=content,
        sha256=sha256_bytes(lowered.flatbuffer),
        bytes=len(lowered.flatbuffer),
        inputs=[(n, list(t.shape), t.dtype) for n, t in zip(shard.inputs, lowered.inputs, strict=True)],
        outputs=[(n, list(t.shape), t.dtype) for n, t in zip(shard.outputs, lowered.outputs, strict=True)],
        program=dict(sorted(lowered.operators.items())),
        dtypes=dict(sorted(counted.dtypes.items())),
        float_tensors=counted.real_valued,
    )
    write_bytes(folder / f"{name}.json", json.dumps(asdict(record), indent=1).encode())
    logger.info("%s: %.1f MB in %.0f s", name, record.bytes / 1e6, time.monotonic() - started)
    return record


def content_of(shard: Shard) -> str:
    """Digest of everything that decides what a shard computes."""
    module = shard.module
    tensors = (*module.named_parameters(), *module.named_buffers())
    encodings = [(name, repr(m.encoding)) for name, m in module.named_modules() if hasattr(m, "encoding")]
    form = (FORM, shard.name, shard.inputs, shard.outputs, [(tuple(a.shape), a.dtype) for a in shard.arguments])
    parts = [(name, hashlib.sha256(t.detach().contiguous().numpy().tobytes()).hexdigest()) for name, t in tensors]
    return sha256_parts([*parts, ("encodings", repr(encodings)), ("form", repr(form))])


def _whole(folder: Path, name: str, content: str) -> Record | None:
    try:
        record = read_record(folder, name)
        if record.content == content:
            read_flatbuffer(folder, record)
            return record
    except MobileICSAError:
        pass
    return None


def read_record(folder: Path, name: str) -> Record:
    return read_fields(Record, inside(folder, f"{name}.json"))


def read_fields(kind: type[T], path: Path) -> T:
    """A dataclass from its JSON; VerificationError names the field that is missing or of another type."""
    data = read_json(path, max_bytes=MAX_JSON_BYTES)
    try:
        made = kind(**data)
    except TypeError as error:
        raise VerificationError(f"{path}: malformed: {error}", hint=AGAIN) from error
    for name, hint in get_type_hints(kind).items():
        allowed = get_args(hint) if isinstance(hint, UnionType) else (get_origin(hint) or hint,)
        if not isinstance(getattr(made, name), allowed):
            raise VerificationError(f"{path}: malformed: {name}", hint=AGAIN)
    return made


def read_flatbuffer(folder: Path, record: Record) -> bytes:
    """A shard's bytes; VerificationError where they are not the ones that were written."""
    path = inside(folder, record.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"{path}: missing or unreadable", hint=AGAIN) from error
    if sha256_bytes(data) != record.sha256:
        raise VerificationError(f"{path}: damaged or exchanged", hint="copy or export it again")
    return data


def read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = read_json(folder / INDEX, max_bytes=MAX_JSON_BYTES)
    methods, logits = (index.get(name) for name in ("methods", "logits"))
    names = list(methods.values()) if isinstance(methods, dict) else [None]
    grid = logits if isinstance(logits, dict) else {}
    for field, whole in (
        ("methods", all(isinstance(n, list) and all(isinstance(name, str) for name in n) for n in names)),
        ("logits.scale", isinstance(grid.get("scale"), int | float)),
        ("logits.zero_point", isinstance(grid.get("zero_point"), int)),
    ):
        if not whole:
            raise VerificationError(f"{folder / INDEX}: {field} is missing or malformed", hint=AGAIN)
    return index


def each_record(folder: Path, method: str) -> Iterator[Record]:
    methods = read_index(folder)["methods"]
    if method not in methods:
        raise VerificationError(f"{folder / INDEX}: methods.{method} is missing", hint=AGAIN)
    yield from (read_record(folder, name) for name in methods[method])
