"""`Examples`: real data as tensors, and the folder it is read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.hashing import sha256_file, sha256_parts
from mobileicsa.methods.overrides import DATA_VARIABLE


@dataclass(frozen=True, kw_only=True)
class Examples:
    """`inputs` (n, channels, height, width) float32, `labels` (n,) int64; `groups` names each one's speaker, if any."""

    inputs: Tensor
    labels: Tensor
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64] | Sequence[int]) -> Examples:
        chosen = np.asarray(indices, np.int64)
        groups = tuple(self.groups[i] for i in chosen) if self.groups else ()
        return Examples(inputs=self.inputs[chosen], labels=self.labels[chosen], groups=groups)


@dataclass(frozen=True, kw_only=True)
class Split:
    """`test` is looked at once, for the reported numbers; whatever is chosen is chosen on parts of `train`."""

    train: Examples
    test: Examples
    classes: int


def data_files(data: Path | None, folder: str, names: Sequence[str]) -> dict[str, Path]:
    """The files of a data set below `data`; InputError that says what is missing and how to name the folder."""
    if data is None:
        raise InputError(
            f"data set {folder}: no data folder was named",
            hint=f"data=DIR with {folder}/{names[0]} in it, or set {DATA_VARIABLE}",
        )
    paths = {name: data / folder / name for name in names}
    for path in paths.values():
        if not path.is_file():
            raise InputError(
                f"{path}: not found", hint=f"data=DIR must hold {folder}/ with {', '.join(names)}; see docs/methods.md"
            )
    return paths


def digest(files: Mapping[str, Path]) -> str:
    """One digest of the files' names and contents."""
    return sha256_parts((name, sha256_file(path)) for name, path in files.items())
