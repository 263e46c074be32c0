"""Stage programs as TOSA-INT flatbuffers: `<stage>.tosa`, its record beside it, `stages.json` last.

What is real-valued at a stage's border, an input or logits, is integers in the file; the session converts by the grid
that `stages.json` keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from mobileicsa.core.errors import InputError, VerificationError
from mobileicsa.io.atomic import write_bytes
from mobileicsa.io.hashing import sha256_bytes
from mobileicsa.io.json_file import read_json
from mobileicsa.program.backend import Array
from mobileicsa_export.tosa_census import census
from mobileicsa_export.tosa_lowering import Lowered, lower
from mobileicsa_export.tosa_session import Loaded, run_shard
from mobileicsa_export.tosa_shards import AGAIN, MAX_JSON_BYTES, Record, read_flatbuffer, read_record

INDEX = "stages.json"
FIRST, LATER = ("input",), ("state", "history")
GIVEN = ("logits", "next_state", "next_history")


def write_stages(programs: Mapping[str, ExportedProgram], folder: Path) -> dict[str, list[Record]]:
    """One record by program; raises Unsupported, with the operator, where a stage has no integer form."""
    folder.mkdir(parents=True, exist_ok=True)
    records, grids = {}, {}
    for name, program in programs.items():
        inputs, outputs = _names(program)
        lowered = lower(program, inputs, outputs, real_ends=True)
        record, grids[name] = _record(name, lowered, inputs, outputs), lowered.grids
        write_bytes(folder / record.file, lowered.flatbuffer)
        write_bytes(folder / f"{name}.json", json.dumps(asdict(record), indent=1).encode())
        records[name] = [record]
    write_bytes(folder / INDEX, json.dumps({"grids": grids}, indent=1).encode())
    return records


def _names(program: ExportedProgram) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of what a stage takes and gives; a program of several stages gives logits alone."""
    taken = sum(spec.kind == InputKind.USER_INPUT for spec in program.graph_signature.input_specs)
    made = [node.meta["val"] for node in program.graph.output_node().args[0]]
    several = len(made) > 1 and all(value.is_floating_point() for value in made)
    given = tuple(f"logits_{exit}" for exit in range(len(made))) if several else GIVEN[: len(made)]
    return (FIRST if taken == 1 else LATER), given


def _record(name: str, lowered: Lowered, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Record:
    counted = census(lowered.flatbuffer)
    digest = sha256_bytes(lowered.flatbuffer)
    return Record(
        file=f"{name}.tosa",
        content=digest,
        sha256=digest,
        bytes=len(lowered.flatbuffer),
        inputs=[(n, list(t.shape), t.dtype) for n, t in zip(inputs, lowered.inputs, strict=True)],
        outputs=[(n, list(t.shape), t.dtype) for n, t in zip(outputs, lowered.outputs, strict=True)],
        program=dict(sorted(lowered.operators.items())),
        dtypes=dict(sorted(counted.dtypes.items())),
        float_tensors=counted.real_valued,
    )


class TosaStages:
    """Stages on Arm's reference model, which is exact and slow."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._grids: dict[str, dict[str, tuple[float, int]]] = _grids(folder, names)
        self._loaded: dict[str, Loaded] = {}
        for name in names:
            record = read_record(folder, name)
            self._loaded[name] = Loaded(record, read_flatbuffer(folder, record))

    def run(self, name: str, inputs: Sequence[Array]) -> list[Array]:
        loaded, grids = self._loaded[name], self._grids[name]
        values: dict[str, Array] = {}
        for (given, _, dtype), array in zip(loaded.record.inputs, inputs, strict=True):
            values[given] = _stored(array, *grids[given], dtype) if given in grids else array
        found = run_shard(loaded, values)
        return [_real(found[n], *grids[n]) if n in grids else found[n] for n, *_ in loaded.record.outputs]

    def close(self) -> None:
        self._loaded = {}


def _stored(array: Array, scale: float, zero: int, dtype: str) -> Array:
    bits = {"INT8": torch.int8, "INT16": torch.int16}[dtype]
    limits = torch.iinfo(bits)
    real = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    ops = torch.ops.quantized_decomposed
    found: Array = ops.quantize_per_tensor(real, scale, zero, limits.min, limits.max, bits).numpy()
    return found


def _real(array: Array, scale: float, zero: int) -> Array:
    return (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def _grids(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    path = folder / INDEX
    found = read_json(path, max_bytes=MAX_JSON_BYTES).get("grids")
    if not isinstance(found, dict) or not all(isinstance(found.get(name, {}), dict) for name in names):
        raise VerificationError(f"{path}: grids is missing or malformed", hint=AGAIN)
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path}: has no stage {missing[0]}", hint=AGAIN)
    return found
