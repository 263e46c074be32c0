"""Ethos-U back end: TOSA shards compiled by Arm's Vela. Compiles, but nothing here can run the result."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from mobileicsa.core.errors import EnvironmentFault, SchemeError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import Session, StageSession, Written
from mobileicsa.program.placement import placement_facts
from mobileicsa_export.tosa import INSTALL, TosaBackend, facts, totals
from mobileicsa_export.tosa_compilers import (
    Compiled,
    Refused,
    compile_all,
    compiled_files,
    read_compiled,
    refusals,
    run,
    taken,
)
from mobileicsa_export.tosa_shards import Record, each_record, files, write_shards

SUFFIX = "_vela.npz"
# What `target.device` must name: Vela's options.
DEVICE = ("accelerator-config", "system-config", "memory-mode")
# Vela's names: column of its summary -> ours, with the unit.
SUMMED = {"cycles_total": "cycles", "cycles_npu": "npu_cycles", "nn_macs": "macs", "inference_time": "seconds"}
KIB = {"sram_memory_used": "sram_peak_kib", "on_chip_flash_memory_used": "flash_kib"}
PRODUCTS = ("Conv2D", "MatMul")
VELA_SAYS = (
    "The numbers below are internal compiler estimates.",
    "For performance numbers the compiled network should be run on an FVP Model or FPGA.",
)


class EthosUBackend:
    """Writes the `tosa` back end's shards or stages, and Vela's command streams for `target.device`."""

    name = "ethos-u"
    compilers = ("tosa-tools", "ethos-u-vela")
    resumes = True
    separate_files = True
    compiles_only = (
        "compiles for an NPU; the same operators run on Arm's reference model with target tosa, the .npz on a device"
    )

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("ethosu") is None:
            return f"ethos-u-vela is not installed: {INSTALL}"
        return TosaBackend().unavailable()

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        device = _device(target)
        written = write_shards(decoder, target, folder)
        return _compiled(folder, written, files(folder, written), device)

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        raise EnvironmentFault(f"back end {self.name}: {self.compiles_only}")

    def write_stages(self, programs: Mapping[str, ExportedProgram], target: Target, folder: Path) -> Written:
        from mobileicsa_export import tosa_stages

        device = _device(target)
        written = tosa_stages.write_stages(programs, folder)
        return _compiled(folder, written, files(folder, written, tosa_stages.INDEX), device)

    def open_stages(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> StageSession:
        raise EnvironmentFault(f"back end {self.name}: {self.compiles_only}")

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        compiled = [read_compiled(folder, record.file, SUFFIX) for record in each_record(folder, "decode")]
        kernels = [(kind, "integer") for c in compiled for kind, n in c.npu.items() for _ in range(n)]
        kernels += [(kind, "outside") for c in compiled for kind, n in c.cpu.items() for _ in range(n)]
        fallbacks = [{"node": r["op"], "reason": r["reason"]} for r in refusals({"decode": compiled})]
        return placement_facts(kernels, [where for kind, where in kernels if kind in PRODUCTS], fallbacks)


def _device(target: Target) -> dict[str, str]:
    missing = [name for name in DEVICE if name not in target.device]
    if missing:
        raise SchemeError(f"target {target.name}: its device names no {missing[0]}, which Vela needs")
    return {name: str(target.device[name]) for name in DEVICE}


def _compiled(
    folder: Path, written: dict[str, list[Record]], sources: tuple[Path, ...], device: dict[str, str]
) -> Written:
    compiled = compile_all(
        folder, written, lambda shard, scratch: _vela(shard, scratch, device), suffix=SUFFIX, setting=described(device)
    )
    return Written(
        files=(*sources, *compiled_files(folder, compiled, SUFFIX)),
        facts={
            **facts(written),
            "delegated_share": share(compiled),
            "unsupported": refusals(compiled),
            "estimates": estimates(compiled, device),
        },
    )


def described(device: dict[str, str]) -> str:
    return f"Vela {version('ethos-u-vela')} for {', '.join(device.values())}"


def _vela(shard: Path, scratch: Path, device: dict[str, str]) -> tuple[Path, dict[str, Any]]:
    said = run(
        [
            *(sys.executable, "-m", "ethosu.vela", str(shard)),
            *("--config", "Arm/vela.ini", *(part for name, value in device.items() for part in (f"--{name}", value))),
            *("--output-format", "raw", "--output-dir", str(scratch)),
            *("--verbose-performance", "--verbose-cycle-estimate"),
        ]
    )
    if not all(sentence in said for sentence in VELA_SAYS):
        raise Refused("Vela does not call its numbers estimates as the version known here does")
    with (scratch / f"{shard.stem}_summary_{device['system-config']}.csv").open() as file:
        (summary,) = csv.DictReader(file)
    with (scratch / f"{shard.stem}_per-layer.csv").open() as file:
        placed = Counter((row["Target"] == "NPU", row["Original Operator"]) for row in csv.DictReader(file))
    return scratch / f"{shard.stem}{SUFFIX}", {
        "npu": {kind: n for (npu, kind), n in sorted(placed.items()) if npu},
        "cpu": {kind: n for (npu, kind), n in sorted(placed.items()) if not npu},
        "numbers": {name: float(summary[column]) for column, name in {**SUMMED, **KIB}.items()},
    }


def share(compiled: dict[str, list[Compiled]]) -> float:
    """Operators on the NPU, as Vela counts them; a refused shard counts as none of its method's mean share."""
    every = [c for records in compiled.values() for c in records]
    npu, cpu = (sum(sum(getattr(c, part).values()) for c in every) for part in ("npu", "cpu"))
    return taken(compiled) * npu / max(npu + cpu, 1)


def estimates(compiled: dict[str, list[Compiled]], device: dict[str, str]) -> dict[str, Any]:
    """Vela's numbers by method: cycles, MACs, seconds and flash summed over shards, SRAM the largest of them."""
    found: dict[str, Any] = {
        "by": described(device),
        "vela_says": " ".join(VELA_SAYS),
    }
    for method, records in compiled.items():
        done = [c.numbers for c in records if c.refused is None]
        found[method] = {
            **{name: sum(n[name] for n in done) for name in (*SUMMED.values(), "flash_kib")},
            "sram_peak_kib": max((n["sram_peak_kib"] for n in done), default=0.0),
            "npu_operators": totals(c.npu for c in records),
            "cpu_operators": totals(c.cpu for c in records),
        }
    return found
