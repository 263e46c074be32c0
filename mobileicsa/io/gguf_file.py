"""`GgufSource`: a GGUF file read as a Hugging Face checkpoint, one dequantised tensor at a time."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.io.gguf_config import config_of, generation_of, hugging_face_name
from mobileicsa.io.gguf_header import GgufTensor, read_gguf_header
from mobileicsa.io.hashing import sha256_file
from mobileicsa.io.tensors import finite

INSTALL_LINE = "pip install 'mobileicsa[demo]'"


class GgufSource:
    """The tensors of one GGUF file under Hugging Face names, with the config that the file describes."""

    def __init__(self, path: Path) -> None:
        try:
            from gguf import constants, quants
        except ImportError as error:
            raise EnvironmentFault(f"{path}: reading GGUF needs the package gguf", hint=INSTALL_LINE) from error
        self.path, self._constants, self._quants = path, constants, quants
        header = read_gguf_header(path)
        self.config: dict[str, Any] = config_of(header, path)
        self.generation: dict[str, Any] = generation_of(self.config)
        size = path.stat().st_size
        self._entries: dict[str, GgufTensor] = {}
        for stored, entry in header.tensors.items():
            name = hugging_face_name(stored)
            if name is None:
                raise InputError(f"{path}: tensor {stored!r} is not part of a {self.config['model_type']} model")
            if entry.offset + self._byte_count(stored, entry) > size:
                raise InputError(f"{path}: tensor {stored!r} ends after the file's {size} bytes", hint="cut off?")
            self._entries[name] = entry
        self._sha256 = sha256_file(path)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def get(self, name: str) -> Tensor:
        entry = self._entry(name)
        kind = self._constants.GGMLQuantizationType(entry.kind)
        stored = np.fromfile(
            self.path, dtype=np.uint8, count=self._byte_count(name, entry), offset=entry.offset
        ).reshape(*entry.shape[:-1], -1)
        # A view of bytes stays a view for F32; `get` promises a fresh tensor, and `stored` is ours alone.
        values = torch.from_numpy(np.ascontiguousarray(self._quants.dequantize(stored, kind), dtype=np.float32))
        return finite(self._reordered(name, values.reshape(entry.shape)), name, self.path)

    def identity(self) -> str:
        return self._sha256

    def check_unchanged(self) -> None:
        if sha256_file(self.path) != self._sha256:
            raise InputError(f"{self.path}: changed while it was in use", hint="run again")

    def write_tokenizer(self, folder: Path) -> None:
        """Save the file's tokenizer as tokenizer.json and tokenizer_config.json."""
        from transformers import AutoTokenizer

        # transformers reads any config beside the file, so the file is shown to it alone.
        with tempfile.TemporaryDirectory() as alone:
            (Path(alone) / "model.gguf").symlink_to(self.path.resolve())
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    alone, gguf_file="model.gguf", local_files_only=True, trust_remote_code=False
                )
            except (ValueError, KeyError, TypeError, IndexError, OSError, AttributeError) as error:
                raise InputError(f"{self.path}: its tokenizer cannot be read: {error}") from error
        # How it was loaded is of no use to whoever opens the folder next.
        for key in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(key, None)
        tokenizer.save_pretrained(folder)

    def _entry(self, name: str) -> GgufTensor:
        if name not in self._entries:
            raise InputError(f"{self.path}: tensor {name!r} is missing", hint="is the file complete?")
        return self._entries[name]

    def _byte_count(self, name: str, entry: GgufTensor) -> int:
        readable = {kind.value for kind in self._quants._type_traits} | {0, 1}
        if entry.kind not in readable:
            raise InputError(f"{self.path}: tensor {name!r} has ggml type {entry.kind}, which cannot be read")
        block, size = self._constants.GGML_QUANT_SIZES[self._constants.GGMLQuantizationType(entry.kind)]
        if entry.shape[-1] % block:
            raise InputError(f"{self.path}: rows of tensor {name!r} are not whole blocks of {block} values")
        return math.prod(entry.shape) // int(block) * int(size)

    def _reordered(self, name: str, values: Tensor) -> Tensor:
        """Undo llama.cpp's order of q and k rows (pairs side by side) for the llama family."""
        if self.config["model_type"] != "llama" or name.split(".")[-2] not in ("q_proj", "k_proj"):
            return values
        key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        heads = self.config[key]
        if values.shape[0] % (2 * heads):
            raise InputError(f"{self.path}: {values.shape[0]} rows of {name!r} do not fit {key} {heads}")
        pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        return pairs.transpose(1, 2).reshape(values.shape).contiguous()
