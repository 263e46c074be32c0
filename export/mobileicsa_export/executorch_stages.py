"""Stage programs as methods of one model.pte, equal weights stored once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from mobileicsa.core.errors import VerificationError
from mobileicsa.program.backend import Array, Written
from mobileicsa_export.executorch import DIGEST_FILE, MODEL_FILE, _facts, _lower, _save
from mobileicsa_export.executorch_graph import prepare
from mobileicsa_export.executorch_session import _check_digest


def write_stages(programs: Mapping[str, ExportedProgram], folder: Path) -> Written:
    _register_kernels()
    folder.mkdir(parents=True, exist_ok=True)
    shared: dict[int, torch.Tensor] = {}
    forms = {name: prepare(program, shared) for name, program in programs.items()}
    lowered = _lower(dict(programs), {"get_n_stages": sum(name.startswith("stage_") for name in programs)})
    path = folder / MODEL_FILE
    facts = {name: {**_facts(lowered, name), "forms": forms[name]} for name in programs}
    _save(lowered, path)
    return Written(files=(path, folder / DIGEST_FILE), facts=facts)


class ExecutorchStages:
    def __init__(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> None:
        path = folder / MODEL_FILE
        _check_digest(path, folder / DIGEST_FILE)
        _register_kernels()
        from executorch.runtime import Runtime, Verification

        from mobileicsa_export.executorch_session import ExecutorchSession

        if threads is not None:
            ExecutorchSession._set_threads(threads)
        try:
            self._program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
            self._methods: dict[str, Any] = {name: self._program.load_method(name) for name in names}
        except (RuntimeError, ValueError) as error:
            raise VerificationError(f"{path}: ExecuTorch cannot load it: {error}", hint="export it again") from error

    def run(self, name: str, inputs: Sequence[Array]) -> list[Array]:
        arguments = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs)
        return [value.numpy().copy() for value in self._methods[name]._method(arguments, clone_outputs=False)]

    def close(self) -> None:
        self._methods = {}
        self._program = None


def _register_kernels() -> None:
    """Those that write and read the 16-bit integers of the borders, outside of the delegates."""
    importlib.import_module("executorch.kernels.quantized")
