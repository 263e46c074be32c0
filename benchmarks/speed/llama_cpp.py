"""llama.cpp through its C interface: prebuilt libraries of npm's `@node-llama-cpp/linux-x64`, unpacked in a folder.

Structures that the interface passes by value are opaque here but for their first fields, whose defaults are checked:
a larger block than the library expects does no harm in the calling conventions of x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.engine import Fed
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.core.errors import EnvironmentFault, InputError

# n_ctx, n_batch, n_ubatch, n_seq_max of llama_context_default_params.
CONTEXT_DEFAULTS = (512, 2048, 512, 1)
FILE_TYPES = {"Q4_0": 2, "Q8_0": 7}


class _Opaque(ctypes.Structure):
    _fields_ = (("words", ctypes.c_int32 * 128),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def load_libraries(folder: Path) -> Any:
    """libllama of that folder, its CPU back ends loaded; EnvironmentFault where it is not there."""
    found = sorted(folder.glob("libllama.*so*"))
    if not found:
        raise EnvironmentFault(
            f"{folder}: no libllama", hint="npm pack @node-llama-cpp/linux-x64, and unpack its bins/linux-x64 there"
        )
    (ggml,) = sorted(folder.glob("libggml.*so*"))[:1]
    base = ctypes.CDLL(str(ggml), mode=ctypes.RTLD_GLOBAL)
    base.ggml_backend_load_all_from_path(str(folder).encode())
    library = ctypes.CDLL(str(found[0]))
    pointer = ctypes.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_Opaque, []),
        "llama_context_default_params": (_Opaque, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Opaque]),
        "llama_init_from_model": (pointer, [pointer, _Opaque]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (ctypes.c_int32, [pointer]),
        "llama_set_n_threads": (None, [pointer, ctypes.c_int32, ctypes.c_int32]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_decode": (ctypes.c_int32, [pointer, _Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_model_quantize_default_params": (_Opaque, []),
        "llama_model_quantize": (ctypes.c_uint32, [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Opaque)]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
        "llama_log_set": (None, [pointer, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(ctypes.cast(_QUIET, ctypes.c_void_p), None)
    library.llama_backend_init()
    return library


# Kept by name: the library calls it for as long as the process lives.
_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


class LlamaCpp(Fed):
    """One GGUF file."""

    name, backend = "llama.cpp", "llama.cpp"

    def __init__(
        self, *, libraries: str, file: str, tokenizer: str, bos_id: int | None, context: int, threads: int
    ) -> None:
        self.tokenizer, self.bos_id, self.max_window = Tokenizer(Path(tokenizer)), bos_id, context - 1
        self._llama = load_libraries(Path(libraries))
        self._model = self._llama.llama_model_load_from_file(file.encode(), self._llama.llama_model_default_params())
        if not self._model:
            raise InputError(f"{file}: llama.cpp cannot load it")
        settings = self._llama.llama_context_default_params()
        if tuple(settings.words[:4]) != CONTEXT_DEFAULTS:
            raise EnvironmentFault(f"llama.cpp: its context settings begin with {tuple(settings.words[:4])}")
        settings.words[0] = context
        self._context = self._llama.llama_init_from_model(self._model, settings)
        self._llama.llama_set_n_threads(self._context, threads, threads)
        self._vocab = self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(self._model))

    def start(self, ids: Sequence[int]) -> int:
        self._forget()
        return int(self._feed(ids)[0].argmax())

    def step(self, token: int) -> int:
        return int(self._feed([token])[0].argmax())

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        fed = self.fed(ids)
        if fed:
            self._forget()
            yield torch.from_numpy(self._feed(fed, every=True).copy())

    def close(self) -> None:
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def _forget(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def _feed(self, ids: Sequence[int], *, every: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits (n, vocab) behind each token, or (1, vocab) behind the last; valid until the next call."""
        count = len(ids)
        tokens = (ctypes.c_int32 * count)(*ids)
        wanted = (ctypes.c_int8 * count)(*[int(every or i == count - 1) for i in range(count)])
        batch = _Batch(n_tokens=count, token=tokens, logits=wanted)
        code = self._llama.llama_decode(self._context, batch)
        if code:
            raise InputError(f"llama.cpp: llama_decode of {count} tokens returned {code}")
        rows = count if every else 1
        return np.ctypeslib.as_array(self._llama.llama_get_logits(self._context), shape=(rows, self._vocab))


def quantize(libraries: Path, source: Path, target: Path, file_type: str) -> None:
    """A GGUF file in another of llama.cpp's formats."""
    llama = load_libraries(libraries)
    settings = llama.llama_model_quantize_default_params()
    settings.words[1] = FILE_TYPES[file_type]
    ctypes.cast(ctypes.byref(settings, 16), ctypes.POINTER(ctypes.c_bool))[0] = True  # allow_requantize
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise InputError(f"{source}: llama.cpp cannot write it as {file_type}")
