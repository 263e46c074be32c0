"""`TensorSource`: named float tensors, read one at a time; and its form for safetensors folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.hashing import sha256_file, sha256_parts
from mobileicsa.io.json_file import read_json
from mobileicsa.io.paths import inside
from mobileicsa.io.safetensors_header import TensorEntry, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
INDEX_MAX_BYTES = 64 << 20
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CHANGED_HINT = "leave the checkpoint alone while it is read, then run again"


class TensorSource(Protocol):
    """The weights of a checkpoint under their Hugging Face names."""

    def names(self) -> tuple[str, ...]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def get(self, name: str) -> Tensor:
        """A fresh float32 tensor, all values finite."""
        ...

    def identity(self) -> str:
        """SHA-256 (hex) of the content, for caching."""
        ...

    def check_unchanged(self) -> None:
        """Raise `InputError` if a file is not what it was when the source was opened."""
        ...


class SafetensorsSource:
    """`model.safetensors`, or the shards that `model.safetensors.index.json` lists, in one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        allowed_roots: Sequence[Path] = (),
        expected_sha256: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        weight_map = self._weight_map(folder, allowed_roots)
        files = {SINGLE_FILE} if weight_map is None else set(weight_map.values())
        self._paths = {name: inside(folder, name, allowed_roots=allowed_roots) for name in sorted(files)}
        self._entries: dict[str, TensorEntry] = {}
        self._file_of: dict[str, str] = {}
        for file, path in self._paths.items():
            for name, entry in read_header(path).items():
                if name in self._file_of:
                    raise InputError(f"{folder}: tensor {name!r} is in both {self._file_of[name]} and {file}")
                self._entries[name], self._file_of[name] = entry, file
        if weight_map is not None:
            self._check_map(weight_map)
        # Hashed after the headers held: a broken file is reported at once, not after reading gigabytes.
        self._sha256 = {file: sha256_file(path) for file, path in self._paths.items()}
        for file, digest in self._sha256.items():
            expected = (expected_sha256 or {}).get(file)
            if expected is not None and digest != expected:
                raise InputError(
                    f"{self._paths[file]}: SHA-256 is {digest}, expected {expected}",
                    hint="the file is damaged or was changed; download it again",
                )

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def get(self, name: str) -> Tensor:
        entry, path = self._entry(name), self._paths[self._file_of[name]]
        try:
            with safe_open(path, framework="pt") as stream:
                stored = stream.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: tensor {name!r} cannot be read: {error}", hint=_CHANGED_HINT) from error
        if tuple(stored.shape) != entry.shape:
            raise InputError(f"{path}: tensor {name!r} changed while it was in use", hint=_CHANGED_HINT)
        # `copy` because a float32 tensor is otherwise a view of the mapped file.
        return finite(stored.to(torch.float32, copy=True), name, path)

    def identity(self) -> str:
        return sha256_parts(self._sha256.items())

    def check_unchanged(self) -> None:
        for file, digest in self._sha256.items():
            if sha256_file(self._paths[file]) != digest:
                raise InputError(f"{self._paths[file]}: changed while it was in use", hint=_CHANGED_HINT)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._entries:
            raise InputError(f"{self._folder}: tensor {name!r} is missing", hint="is the checkpoint complete?")
        return self._entries[name]

    @staticmethod
    def _weight_map(folder: Path, allowed_roots: Sequence[Path]) -> dict[str, str] | None:
        """Tensor to file, from the index; None where a single file holds all."""
        if (folder / SINGLE_FILE).exists():
            return None
        index = inside(folder, INDEX_FILE, allowed_roots=allowed_roots)
        if not index.exists():
            _refuse_without_weights(folder)
        weight_map = read_json(index, max_bytes=INDEX_MAX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index}: weight_map is missing or empty")
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or not file.endswith(".safetensors"):
                raise InputError(f"{index}: weight_map[{tensor!r}] is {file!r}: only safetensors files are read")
        return weight_map

    def _check_map(self, weight_map: Mapping[str, str]) -> None:
        index = self._folder / INDEX_FILE
        for tensor, file in weight_map.items():
            if self._file_of.get(tensor) != file:
                raise InputError(f"{index}: tensor {tensor!r} is not in {file}", hint="index and shards do not match")
        for tensor, file in self._file_of.items():
            if tensor not in weight_map:
                raise InputError(f"{index}: tensor {tensor!r} of {file} is not listed", hint="was a shard exchanged?")


def finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor itself, if it holds neither NaN nor infinity."""
    # aminmax needs no memory of the tensor's size and passes NaN on.
    if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        bad = (~torch.isfinite(tensor)).nonzero()
        raise InputError(
            f"{path}: tensor {name!r} holds NaN or infinity: {len(bad)} of {tensor.numel()} values, "
            f"first at {bad[0].tolist()}",
            hint="the checkpoint is damaged; download it again",
        )
    return tensor


def _refuse_without_weights(folder: Path) -> None:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise InputError(
            f"{folder}: only safetensors weights are read, not {pickles[0]} (a pickle can run any code when opened)",
            hint="use the safetensors version of the model, or convert it in a sandbox",
        )
    raise InputError(
        f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}", hint="point --model at a Hugging Face model folder"
    )
