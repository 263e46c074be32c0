"""Runs the written ONNX models with OpenVINO on this machine's CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.cores import physical_cores
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.methods import input_names
from mobileicsa_export.onnx import MODEL_FILES
from mobileicsa_export.onnx_identity import check_identity, check_target
from mobileicsa_export.onnx_load import load_graph
from mobileicsa_export.onnx_session import host_kernels
from mobileicsa_export.openvino_reading import read_core, scales_of_products

DEVICE = "CPU"


def configuration(*, threads: int | None, sums_exact: bool) -> dict[str, Any]:
    """OpenVINO's properties. `sums_exact`: this CPU's 8-bit products do not saturate."""
    return {
        # Unasked, OpenVINO computes in bfloat16 where the CPU has it, and quantises activations of its own accord.
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        # Without VNNI the pairwise sums of its 8-bit kernels saturate: then the same integers are multiplied in float.
        "LP_TRANSFORMS_MODE": sums_exact,
        "INFERENCE_NUM_THREADS": physical_cores() if threads is None else threads,
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": False,
    }


def compile_method(path: Path, *, threads: int | None) -> ov.CompiledModel:
    """One model file, checked and compiled; VerificationError where OpenVINO cannot."""
    core = read_core(scales_of_products(load_graph(path).graph))
    settings = configuration(threads=threads, sums_exact=host_kernels().mixed_sign_exact)
    try:
        return core.compile_model(core.read_model(path), DEVICE, settings)
    except Exception as error:
        raise VerificationError(f"{path}: OpenVINO cannot load it: {error}") from error


class OpenvinoSession:
    """Both methods of an artifact folder. Inputs are read in place; the rows are OpenVINO's own buffers."""

    def __init__(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> None:
        self._names = input_names(spec)
        self._requests: dict[str, ov.InferRequest] = {}
        for method, file in MODEL_FILES.items():
            model = load_graph(folder / file)
            check_identity(folder / file, model, spec, method)
            check_target(folder / file, model.metadata_props, target)
            self._requests[method] = compile_method(folder / file, threads=threads).create_infer_request()

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        request = self._requests[method]
        values = (token_ids, np.array([position], dtype=np.int64), *cache)
        try:
            request.infer(dict(zip(self._names, values, strict=True)), share_inputs=True)
        except Exception as error:
            raise VerificationError(
                f"{MODEL_FILES[method]}: fails on OpenVINO: {error}", hint="export it again"
            ) from error
        logits, *rows = (tensor.data for tensor in request.output_tensors)
        return logits, rows

    def close(self) -> None:
        self._requests.clear()
