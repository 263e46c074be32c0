"""Runs model.pte with `executorch.runtime`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.program.backend import Array, IntArray
from mobileicsa_export.executorch import (
    ADAPTER_FILE,
    ANY_ROWS,
    DIGEST_FILE,
    METHOD_NAMES,
    MODEL_FILE,
    identity,
    sha256,
    stored_name,
)

logger = logging.getLogger(__name__)

DTYPES = {1: torch.int8, 6: torch.float32}  # ExecuTorch's scalar types


class ExecutorchSession:
    """Loaded program with one thread pool a process."""

    _open: ClassVar[WeakSet[ExecutorchSession]] = WeakSet()

    def __init__(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> None:
        path = folder / MODEL_FILE
        _check_digest(path, folder / DIGEST_FILE)
        if threads is not None:
            self._set_threads(threads)
        from executorch.runtime import Runtime, Verification

        try:
            self._program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
            _check_identity(path, self._program, spec, target)
            present = self._program.method_names
            self.any_rows = ANY_ROWS in present
            self._methods: dict[str, Any] = {
                method: self._program.load_method(stored_name(method, present)) for method in METHOD_NAMES
            }
        except (RuntimeError, ValueError) as error:
            raise VerificationError(f"{path}: ExecuTorch cannot load it: {error}", hint="export it again") from error
        metadata, own = self._methods["decode"].metadata, 2 + 2 * spec.num_layers
        self._adapter_inputs = _adapter_inputs(folder / ADAPTER_FILE)
        if metadata.num_inputs() != own + len(self._adapter_inputs):
            raise VerificationError(
                f"{path}: method decode has {metadata.num_inputs()} inputs, the model {own}, its adapters "
                f"{len(self._adapter_inputs)}"
            )
        infos = [metadata.input_tensor_meta(own + index) for index in range(len(self._adapter_inputs))]
        self._zeros = [torch.zeros(tuple(info.sizes()), dtype=DTYPES[info.dtype()]) for info in infos]
        self._factors = self._zeros
        self._open.add(self)

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        arguments = (
            torch.from_numpy(np.ascontiguousarray(token_ids, dtype=np.int64)),
            torch.tensor([position]),
            *(torch.from_numpy(np.ascontiguousarray(array)) for array in cache),
            *self._factors,
        )
        # Copied by numpy: PyTorch would copy the logits with threads that go on spinning, on cores the next call needs.
        logits, *rows = self._methods[method]._method(arguments, clone_outputs=False)
        return logits.numpy().copy(), [row.numpy().copy() for row in rows]

    def use_adapter(self, file: Path | None) -> None:
        self._factors = self._zeros if file is None else self._read(file)

    def _read(self, file: Path) -> list[torch.Tensor]:
        tensors = read_tensors(file)
        for name, zeros in zip(self._adapter_inputs, self._zeros, strict=True):
            if name not in tensors or tensors[name].shape != zeros.shape or tensors[name].dtype != zeros.dtype:
                raise VerificationError(f"{file}: {name} is missing or of another shape", hint="export it again")
        return [tensors[name] for name in self._adapter_inputs]

    def close(self) -> None:
        self._methods = {}
        self._program = None
        self._open.discard(self)

    @classmethod
    def _set_threads(cls, threads: int) -> None:
        """The pool belongs to the process, and a loaded program keeps a pointer to it."""
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() == threads:
            return
        if cls._open:
            logger.warning("threads stay as they are: another ExecuTorch session is open")
            return
        portable_lib._unsafe_reset_threadpool(threads)


def _adapter_inputs(path: Path) -> list[str]:
    """Names of the adapters' factors in the order of the inputs; none where the program has no room for them."""
    if not path.is_file():
        return []
    names = read_json(path).get("inputs")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise VerificationError(f"{path}: field inputs is no list of names", hint="export it again")
    return names


def _check_identity(path: Path, program: Any, spec: ModelSpec, target: Target) -> None:
    """A sound file of another model or target must not run."""
    expected = identity(spec, target)
    present = program.method_names
    missing = sorted({*(stored_name(method, present) for method in METHOD_NAMES), *expected} - present)
    if missing:
        raise VerificationError(f"{path}: no method {', '.join(missing)}")
    for name, value in expected.items():
        (found,) = program.load_method(name).execute([])
        if found != value:
            raise VerificationError(
                f"{path}: {name} is {found}, expected {value}", hint="the file belongs to another model or target"
            )


def _check_digest(path: Path, digest: Path) -> None:
    if not path.is_file():
        raise VerificationError(f"{path}: missing", hint="export the model again with the executorch back end")
    try:
        expected = digest.read_text().split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise VerificationError(f"{digest}: missing or unreadable", hint="export the model again") from error
    found = sha256(path)
    if found != expected:
        raise VerificationError(
            f"{path}: SHA-256 is {found[:16]}…, {digest.name} says {expected[:16]}…",
            hint="the file was damaged or exchanged: copy or export it again",
        )
