"""VGF back end: TOSA shards as SPIR-V graphs for Vulkan's ML extensions. Converts, nothing here can run the result."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import Session, StageSession, Written
from mobileicsa_export.tosa import TosaBackend, facts
from mobileicsa_export.tosa_compilers import Refused, compile_all, compiled_files, refusals, run, taken
from mobileicsa_export.tosa_shards import Record, files, write_shards

SUFFIX = ".vgf"
PACKAGE = "ai-ml-sdk-model-converter"
INSTALL = "pip install 'mobileicsa[vgf]'"
# Its command, found whether or not the interpreter's scripts are on PATH.
CONVERT = "import sys; from model_converter.cli import main; sys.exit(main())"


class VgfBackend:
    """Writes the `tosa` back end's shards or stages, and a .vgf of each."""

    name = "vgf"
    compilers = ("tosa-tools", "ai-ml-sdk-model-converter")
    resumes = True
    separate_files = True
    compiles_only = "converts for Vulkan; the same operators run on Arm's reference model with target tosa"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("model_converter") is None:
            return f"{PACKAGE} is not installed: {INSTALL}"
        return TosaBackend().unavailable()

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        written = write_shards(decoder, target, folder)
        return _converted(folder, written, files(folder, written))

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        raise EnvironmentFault(f"back end {self.name}: {self.compiles_only}")

    def write_stages(self, programs: Mapping[str, ExportedProgram], target: Target, folder: Path) -> Written:
        from mobileicsa_export import tosa_stages

        written = tosa_stages.write_stages(programs, folder)
        return _converted(folder, written, files(folder, written, tosa_stages.INDEX))

    def open_stages(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> StageSession:
        raise EnvironmentFault(f"back end {self.name}: {self.compiles_only}")

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        return TosaBackend().placement(folder, target)


def _converted(folder: Path, written: dict[str, list[Record]], sources: tuple[Path, ...]) -> Written:
    compiled = compile_all(folder, written, _convert, suffix=SUFFIX, setting=f"{PACKAGE} {version(PACKAGE)}")
    return Written(
        files=(*sources, *compiled_files(folder, compiled, SUFFIX)),
        # A .vgf holds a shard whole or not at all.
        facts={**facts(written), "delegated_share": taken(compiled), "unsupported": refusals(compiled)},
    )


def _convert(shard: Path, scratch: Path) -> tuple[Path, dict[str, Any]]:
    product = scratch / f"{shard.stem}{SUFFIX}"
    run([sys.executable, "-c", CONVERT, "--input", str(shard), "--output", str(product)])
    if not product.is_file():
        raise Refused("the converter wrote no file")
    return product, {}
