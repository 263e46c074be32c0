"""VGF back end: TOSA shards as SPIR-V graphs for Vulkan's ML extensions. Converts, nothing here can run the result."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import Session, Written
from mobileicsa_export.tosa import TosaBackend, facts
from mobileicsa_export.tosa_compilers import Refused, compile_all, compiled_files, refusals, run, taken
from mobileicsa_export.tosa_shards import files, write_shards

SUFFIX = ".vgf"
PACKAGE = "ai-ml-sdk-model-converter"
INSTALL = "pip install 'mobileicsa[vgf]'"
# Its command, found whether or not the interpreter's scripts are on PATH.
CONVERT = "import sys; from model_converter.cli import main; sys.exit(main())"


class VgfBackend:
    """Writes the `tosa` back end's shards and a .vgf of each."""

    name = "vgf"
    compilers = ("tosa-tools", "ai-ml-sdk-model-converter")
    resumes = True
    compiles_only = "converts for Vulkan; the same operators run on Arm's reference model with target tosa"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("model_converter") is None:
            return f"{PACKAGE} is not installed: {INSTALL}"
        return TosaBackend().unavailable()

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        written = write_shards(decoder, target, folder)
        compiled = compile_all(folder, written, _convert, suffix=SUFFIX, setting=f"{PACKAGE} {version(PACKAGE)}")
        return Written(
            files=(*files(folder, written), *compiled_files(folder, compiled, SUFFIX)),
            # A .vgf holds a shard whole or not at all.
            facts={**facts(written), "delegated_share": taken(compiled), "unsupported": refusals(compiled)},
        )

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        raise EnvironmentFault(f"back end {self.name}: {self.compiles_only}")

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        return TosaBackend().placement(folder, target)


def _convert(shard: Path, scratch: Path) -> tuple[Path, dict[str, Any]]:
    product = scratch / f"{shard.stem}{SUFFIX}"
    run([sys.executable, "-c", CONVERT, "--input", str(shard), "--output", str(product)])
    if not product.is_file():
        raise Refused("the converter wrote no file")
    return product, {}
