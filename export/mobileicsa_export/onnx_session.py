"""Runs the written ONNX models with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.cores import physical_cores
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.methods import input_names, output_names
from mobileicsa_export.onnx import MODEL_FILES
from mobileicsa_export.onnx_adapter import with_adapter
from mobileicsa_export.onnx_identity import check_identity, check_target
from mobileicsa_export.onnx_load import load_graph
from mobileicsa_export.onnx_lowering import Kernels, lower
from mobileicsa_export.onnx_rows import free_rows

# fast: integer kernels, the rest in float32; exact: the simulator's integers, slower; as_written: every node of the
# file by itself, without any optimisation.
Numerics = Literal["fast", "exact", "as_written"]
X86 = ("x86_64", "amd64", "x86", "i386", "i686")
CPU_INFO = Path("/proc/cpuinfo")


def host_kernels() -> Kernels:
    """What this CPU multiplies fast and exactly."""
    if platform.machine().lower() not in X86:
        return Kernels(unsigned=False, mixed_sign_exact=True)
    info = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.exists() else ""
    return Kernels(unsigned=True, mixed_sign_exact="vnni" in info)


def session_options(folder: Path, kernels: Kernels, *, threads: int | None, optimise: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    # A number of our own even where the caller leaves it open: with its default ONNX Runtime pins its threads to cores,
    # and a pinned thread that meets the caller's on one core halves the speed of a small model (measured).
    options.intra_op_num_threads = physical_cores() if threads is None else threads
    options.log_severity_level = 3
    entries = {
        # The model comes from memory, its weights from this folder.
        "session.model_external_initializers_file_folder_path": str(folder),
        # Ours is the lowering (onnx_lowering.py); what it leaves in float reads weights dequantised once.
        "session.disable_quant_qdq": "1",
    }
    if not kernels.mixed_sign_exact:
        entries["session.x64quantprecision"] = "1"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    return options


def start(path: Path, *, threads: int | None, numerics: Numerics, profile: Path | None = None) -> ort.InferenceSession:
    """Check and load one model; `profile` is a file name prefix."""
    return start_graph(load_graph(path), path, threads=threads, numerics=numerics, profile=profile)


def start_graph(
    model: ir.Model, path: Path, *, threads: int | None, numerics: Numerics, profile: Path | None = None
) -> ort.InferenceSession:
    """As `start`, of a graph that was read from `path`; it is changed in place."""
    kernels = host_kernels()
    options = session_options(path.parent, kernels, threads=threads, optimise=numerics != "as_written")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        if numerics != "as_written":
            lower(model, kernels, exact=numerics == "exact")
        return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VerificationError(f"{path}: ONNX Runtime cannot load it: {error}") from error


class OnnxSession:
    """Both methods of an artifact folder. Inputs are read in place; the rows are ONNX Runtime's own buffers."""

    def __init__(
        self, folder: Path, spec: ModelSpec, *, threads: int | None = None, numerics: Numerics = "fast"
    ) -> None:
        self._names = input_names(spec)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._facts: dict[Path, dict[str, str]] = {}
        self._row_names = output_names(spec)[1:]
        self.any_rows = numerics != "as_written"
        self.use_adapter(None)
        for method, file in MODEL_FILES.items():
            # Read once: to parse a graph takes longer than ONNX Runtime takes to load it.
            model = load_graph(folder / file)
            check_identity(folder / file, model, spec, method)
            self._facts[folder / file] = dict(model.metadata_props)
            self.any_rows = self.any_rows and free_rows(model.graph)
            self._sessions[method] = start_graph(model, folder / file, threads=threads, numerics=numerics)

    def check_target(self, target: Target) -> None:
        """VerificationError where the files were written for another target than that of the artifact."""
        for path, facts in self._facts.items():
            check_target(path, facts, target)

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        logits, *rows = self._run(method, None, (token_ids, np.array([position], dtype=np.int64), *cache), self._whole)
        return logits, rows

    def fill(self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]) -> list[Array]:
        values = (token_ids, np.array([position], dtype=np.int64), *cache)
        return self._run(method, self._row_names, values, self._rows_only)

    def _run(
        self, method: str, outputs: list[str] | None, values: Sequence[Array], options: ort.RunOptions
    ) -> list[Array]:
        try:
            feeds = dict(zip(self._names, values, strict=True))
            found: list[Array] = self._sessions[method].run(outputs, feeds, options)
        except Exception as error:
            raise VerificationError(
                f"{MODEL_FILES[method]}: fails on ONNX Runtime: {error}", hint="export it again"
            ) from error
        return found

    def use_adapter(self, file: Path | None) -> None:
        self._whole, self._rows_only = ort.RunOptions(), ort.RunOptions()
        self._rows_only.only_execute_path_to_fetches = True
        self._adapter = None if file is None else with_adapter(file, self._whole, self._rows_only)

    def close(self) -> None:
        self._sessions.clear()
