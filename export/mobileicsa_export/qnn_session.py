"""Runs the written context binaries on Qualcomm's HTP emulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.paths import inside
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.methods import input_names, output_names
from mobileicsa_export.qnn import CONTEXT_FILES
from mobileicsa_export.qnn_compile import start
from mobileicsa_export.qnn_context import AGAIN, check_context

SIGN = np.uint8(0x80)


class HtpSession:
    """Both methods of an artifact folder. Context binaries hold one target's code: another is refused."""

    def __init__(self, folder: Path, spec: ModelSpec, target: Target) -> None:
        self._names, self._outputs = input_names(spec), output_names(spec)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._logits: dict[str, tuple[np.float32, int]] = {}
        for method, file in CONTEXT_FILES.items():
            path = inside(folder, file)
            self._logits[method] = check_context(path, spec, method, target)
            self._sessions[method] = _open(path, target)

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        past = [rows.view(np.uint8) ^ SIGN for rows in cache]
        values = (token_ids, np.array([position], dtype=np.int64), *past)
        try:
            logits, *rows = self._sessions[method].run(self._outputs, dict(zip(self._names, values, strict=True)))
        except Exception as error:
            raise VerificationError(
                f"{CONTEXT_FILES[method]}: fails on the HTP emulator: {error}", hint=AGAIN
            ) from error
        scale, zero = self._logits[method]
        real = (logits.astype(np.int32) - zero).astype(np.float32) * scale
        return real, [(row ^ SIGN).view(np.int8) for row in rows]

    def close(self) -> None:
        self._sessions.clear()


def _open(path: Path, target: Target) -> ort.InferenceSession:
    try:
        return start(path, target, {}, {})
    except Exception as error:
        raise VerificationError(f"{path}: the HTP emulator cannot load it: {error}", hint=AGAIN) from error
