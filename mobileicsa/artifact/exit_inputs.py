"""Inputs to calibrate or run an early-exit model with: an .npz of the user's, or noise that says so."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.hashing import sha256_file
from mobileicsa.io.paths import public_name
from mobileicsa.models.early_exit_vit import ExitVitSpec

SYNTHETIC = 64
MAX_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """`inputs` (samples, channels, height, width) float32; `labels` (samples,) or None; `facts` for the report."""

    inputs: Tensor
    labels: NDArray[np.int64] | None
    facts: dict[str, Any]


def read_inputs(path: Path | None, spec: ExitVitSpec, seed: int) -> Inputs:
    """`inputs`, and `labels` where it has them, of an .npz; without a path unit-normal noise.

    InputError where shapes, numbers or labels do not fit the model.
    """
    shape = (spec.channels, spec.height, spec.width)
    if path is None:
        noise = torch.randn((SYNTHETIC, *shape), generator=torch.Generator().manual_seed(seed))
        note = "no --calibration: unit-normal noise; ranges and thresholds are not those of real inputs"
        return Inputs(inputs=noise, labels=None, facts={"source": "noise", "samples": SYNTHETIC, "note": note})
    arrays = _arrays(path)
    found = np.asarray(arrays["inputs"])
    if found.shape[1:] != shape or not len(found) or not np.issubdtype(found.dtype, np.floating):
        raise InputError(
            f"{path}: inputs are {found.dtype} {list(found.shape)}, expected float32 {['samples', *shape]}"
        )
    if not np.isfinite(found).all():
        raise InputError(f"{path}: inputs hold numbers that are not finite")
    labels = arrays.get("labels")
    if labels is not None:
        labels = np.asarray(labels)
        whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == found.shape[:1]
        if not whole or labels.min() < 0 or labels.max() >= spec.classes:
            raise InputError(f"{path}: labels must be a whole number below {spec.classes} for each input")
        labels = labels.astype(np.int64)
    facts = {"source": public_name(str(path)), "sha256": sha256_file(path), "samples": len(found), "note": None}
    return Inputs(inputs=torch.from_numpy(found.astype(np.float32)), labels=labels, facts=facts)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size} bytes unpacked, at most {MAX_BYTES} are read")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in ("inputs", "labels")}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: cannot be read as .npz: {error}") from error
    if "inputs" not in arrays:
        raise InputError(f"{path}: holds no array `inputs`")
    return arrays
