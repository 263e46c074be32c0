"""TOSA back end: integer-only flatbuffers for Arm's compilers, run on Arm's reference model."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import Session, StageSession, Written
from mobileicsa.program.placement import placement_facts
from mobileicsa_export.tosa_census import PRODUCTS, census
from mobileicsa_export.tosa_shards import Record, each_record, files, read_flatbuffer, write_shards

INSTALL = "pip install 'mobileicsa[arm]'"
PACKAGES = ("tosa_serializer", "tosa_reference_model", "tosa")


class TosaBackend:
    """Writes a folder of `.tosa` shards: the whole method, look-ups of tables included, without a real number."""

    name = "tosa"
    compilers = ("tosa-tools",)
    resumes = True
    separate_files = True
    emulator = "Arm's reference model, exact and not fast, takes seconds a token (SmolLM2-135M: 1 to 2 s on one core)"

    def unavailable(self) -> str | None:
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        return f"tosa-tools is not installed: {INSTALL}" if missing else None

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        written = write_shards(decoder, target, folder)
        return Written(files=files(folder, written), facts=facts(written))

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        from mobileicsa_export.tosa_session import TosaSession

        return TosaSession(folder, spec, target)

    def write_stages(self, programs: Mapping[str, ExportedProgram], target: Target, folder: Path) -> Written:
        from mobileicsa_export import tosa_stages

        written = tosa_stages.write_stages(programs, folder)
        return Written(files=files(folder, written, tosa_stages.INDEX), facts=facts(written))

    def open_stages(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> StageSession:
        from mobileicsa_export.tosa_stages import TosaStages

        return TosaStages(folder, names)

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        kernels, fallbacks = [], []
        for record in each_record(folder, "decode"):
            for operator, integer in census(read_flatbuffer(folder, record)).operators:
                kernels.append((operator, "integer" if integer else "float"))
                if not integer:
                    fallbacks.append({"node": f"{record.file}: {operator}", "reason": "reads or makes real numbers"})
        return placement_facts(kernels, [kind for op, kind in kernels if op in PRODUCTS], fallbacks)


def facts(written: dict[str, list[Record]]) -> dict[str, Any]:
    """`delegated_share` is 1: what has no integer form raises Unsupported while it is lowered."""
    every = [record for records in written.values() for record in records]
    return {
        "bytes": sum(record.bytes for record in every),
        "shards": {method: len(records) for method, records in written.items()},
        "delegated_share": 1.0,
        "float_tensors": sum(record.float_tensors for record in every),
        "unsupported": [],
        "estimates": {},
        "program_operators": {method: totals(r.program for r in records) for method, records in written.items()},
        "dtypes": {method: totals(r.dtypes for r in records) for method, records in written.items()},
    }


def totals(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for count in counts:
        found.update(count)
    return dict(sorted(found.items()))
