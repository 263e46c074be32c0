"""Runs the written context binaries on Qualcomm's HTP emulator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mobileicsa.core.errors import InputError, VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.paths import inside
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.methods import input_names, output_names
from mobileicsa_export.onnx import METADATA_KEYS
from mobileicsa_export.qnn import CONTEXT_FILES
from mobileicsa_export.qnn_compile import start

KEYS = METADATA_KEYS | {"logits_encoding"}
SIGN = np.uint8(0x80)


class HtpSession:
    """Both methods of an artifact folder. Context binaries hold one target's code: another is refused."""

    def __init__(self, folder: Path, spec: ModelSpec, target: Target) -> None:
        self._names, self._outputs = input_names(spec), output_names(spec)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._logits: dict[str, tuple[np.float32, int]] = {}
        for method, file in CONTEXT_FILES.items():
            path = inside(folder, file)
            session = _open(path, target)
            facts = _facts(path, session, method, target)
            names = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
            if (sorted(names[0]), sorted(names[1])) != (sorted(self._names), sorted(self._outputs)):
                raise VerificationError(
                    f"{path}: its inputs and outputs are not those of this {spec.num_layers}-layer model"
                )
            scale, zero = json.loads(facts["logits_encoding"])
            self._sessions[method], self._logits[method] = session, (np.float32(scale), int(zero))

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        past = [rows.view(np.uint8) ^ SIGN for rows in cache]
        values = (token_ids, np.array([position], dtype=np.int64), *past)
        try:
            logits, *rows = self._sessions[method].run(self._outputs, dict(zip(self._names, values, strict=True)))
        except Exception as error:
            raise InputError(f"{CONTEXT_FILES[method]}: the HTP emulator refuses the inputs: {error}") from error
        scale, zero = self._logits[method]
        real = (logits.astype(np.int32) - zero).astype(np.float32) * scale
        return real, [(row ^ SIGN).view(np.int8) for row in rows]

    def close(self) -> None:
        self._sessions.clear()


def _open(path: Path, target: Target) -> ort.InferenceSession:
    if not path.is_file():
        raise VerificationError(f"{path}: is missing")
    try:
        return start(path, target, {}, {})
    except Exception as error:
        raise VerificationError(f"{path}: the HTP emulator cannot load it: {error}") from error


def _facts(path: Path, session: ort.InferenceSession, method: str, target: Target) -> dict[str, str]:
    """A sound file of another method or target must not run."""
    facts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    if not set(facts) >= KEYS:
        raise VerificationError(f"{path}: lacks its metadata {sorted(KEYS - set(facts))}: is it whole?")
    for key, expected in (("method", method), ("target", target.name)):
        if facts[key] != expected:
            raise VerificationError(
                f"{path}: was written for {key} {facts[key]}, expected {expected}", hint="export the artifact again"
            )
    return facts
