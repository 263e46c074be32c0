"""Runs the written ONNX models with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.methods import input_names

MODEL_FILES = {"decode": "model.onnx", "prefill": "model_prefill.onnx"}


def session_options(*, threads: int | None, optimise: bool = True) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Signed 8-bit activations: without this, x86 keeps DQ-MatMul-Q in float.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    return options


class OnnxSession:
    """Both methods of an artifact folder. `optimise=False` runs every node as written (reference runs)."""

    def __init__(self, folder: Path, spec: ModelSpec, *, threads: int | None = None, optimise: bool = True) -> None:
        options = session_options(threads=threads, optimise=optimise)
        self._names = input_names(spec)
        self._sessions = {method: _open(folder / file, options) for method, file in MODEL_FILES.items()}

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        values = (token_ids, np.array([position], dtype=np.int64), *cache)
        logits, *rows = self._sessions[method].run(None, dict(zip(self._names, values, strict=True)))
        return logits, rows

    def close(self) -> None:
        self._sessions.clear()


def _open(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VerificationError(f"{path}: ONNX Runtime cannot load it: {error}") from error
