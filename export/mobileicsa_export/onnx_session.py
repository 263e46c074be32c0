"""Runs the written ONNX models with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.methods import input_names
from mobileicsa_export.onnx_lowering import lower

MODEL_FILES = {"decode": "model.onnx", "prefill": "model_prefill.onnx"}


def session_options(folder: Path, *, threads: int | None, optimise: bool = True) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3
    entries = {
        # The model comes from memory, its weights from this folder.
        "session.model_external_initializers_file_folder_path": str(folder),
        # Ours is the lowering (onnx_lowering.py); what it leaves in float reads weights dequantised once.
        "session.disable_quant_qdq": "1",
        # Without VNNI, sums of unsigned x signed products saturate in 16 bits; this takes an exact kernel there.
        "session.x64quantprecision": "1",
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    return options


class OnnxSession:
    """Both methods of an artifact folder. `optimise=False` runs every node as written (reference runs)."""

    def __init__(self, folder: Path, spec: ModelSpec, *, threads: int | None = None, optimise: bool = True) -> None:
        self._names = input_names(spec)
        self._sessions = {}
        for method, file in MODEL_FILES.items():
            options = session_options(folder, threads=threads, optimise=optimise)
            self._sessions[method] = _open(folder / file, options, optimise)

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        values = (token_ids, np.array([position], dtype=np.int64), *cache)
        logits, *rows = self._sessions[method].run(None, dict(zip(self._names, values, strict=True)))
        return logits, rows

    def close(self) -> None:
        self._sessions.clear()


def _open(path: Path, options: ort.SessionOptions, optimise: bool) -> ort.InferenceSession:
    try:
        model = ir.load(path)
        if optimise:
            lower(model)
        data = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VerificationError(f"{path}: ONNX Runtime cannot load it: {error}") from error
