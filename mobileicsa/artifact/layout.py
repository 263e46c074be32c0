"""Names of the files in an artifact folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mobileicsa.io import staging

CONFIG = "config.json"
PLAN = "quant_plan.json"
WEIGHTS = "weights.safetensors"
RECIPE = "recipe.yaml"
TOKENIZER = "tokenizer.json"
REPORT = "report.json"
REPORT_PAGE = "report.html"
CARD = "README.md"
MANIFEST = staging.MANIFEST  # written last: without it a folder is not an artifact
GOLDEN = "golden/vectors.safetensors"
GREEDY = "golden/greedy.json"
ENCODINGS = "encodings"
BASIS = "basis.safetensors"  # read only where an adapter follows
ADAPTERS = "adapters"

# Of early-exit artifacts, which have their model's exits.json too.
CONFIDENCES = "exit_confidences.safetensors"
EXIT_FIGURE = "exits.svg"
LATENCY_FIGURE = "exits_latency.svg"  # by `bench`

# Bytes 0..MAX of JSON files of ours; a plan of a 100-layer model has about 20 MB of edges.
MAX_JSON_BYTES = 256 << 20


def backend_folder(target: str, backend: str, first_target: str) -> str:
    """The first target's files lie at the top (onnx/, executorch/), further ones under targets/<name>/."""
    return backend if target == first_target else f"targets/{target}/{backend}"


def adapter_file(backend_files: Path, name: str, suffix: str) -> Path:
    """An adapter as a back end reads it, among the back end's files."""
    return backend_files / ADAPTERS / f"{name}{suffix}"


def runtime_files(files: Mapping[str, int]) -> dict[str, int]:
    """Those of a back end's files (name -> bytes) that a runtime reads: encodings (.json) are for compilers."""
    return {name: count for name, count in files.items() if not name.endswith(".json")}
