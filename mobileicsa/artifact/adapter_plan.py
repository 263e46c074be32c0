"""What of a build's adapters can be known, and go wrong, before heavy work."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from mobileicsa.artifact.adapters import read_adapters
from mobileicsa.core.errors import InputError, Unsupported, UsageError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.checkpoint import Checkpoint
from mobileicsa.models.adapter import PeftAdapter, check_base, check_norms
from mobileicsa.models.merged import merged
from mobileicsa.models.tensor_names import PlainNames
from mobileicsa.program.backend import AdaptingBackend, backends

log = logging.getLogger(__name__)


def merge(checkpoint: Checkpoint, spec: ModelSpec, folder: Path | None) -> tuple[Checkpoint, PeftAdapter | None]:
    """The checkpoint with the adapter of that folder merged, if there is one."""
    if folder is None:
        return checkpoint, None
    (adapter,) = read_adapters([folder], spec)
    _check_against(checkpoint, adapter)
    return merged(checkpoint, adapter), adapter


def plan_adapters(
    checkpoint: Checkpoint, spec: ModelSpec, folders: Sequence[Path], targets: Sequence[Target], limit: float
) -> tuple[PeftAdapter, ...]:
    """The adapters of these folders, which fit the model, and every target takes some."""
    check_limit(limit)
    if not folders:
        return ()
    check_adapting(targets)
    adapters = read_adapters(folders, spec)
    for adapter in adapters:
        _check_against(checkpoint, adapter)
    return tuple(adapters)


def check_limit(limit: float) -> None:
    if not (math.isfinite(limit) and 0 <= limit <= 1):
        raise UsageError(f"--max-adapter-saturation {limit}: is a share of values, from 0 to 1")


def check_adapting(targets: Sequence[Target]) -> None:
    """Unsupported where a target's back end has no form for adapters."""
    known = backends()
    able = sorted(name for name, found in known.items() if isinstance(found, AdaptingBackend))
    for target in targets:
        for name in target.backends:
            if not isinstance(known.get(name), AdaptingBackend):
                raise Unsupported(
                    f"--target {target.name}",
                    f"back end {name} takes no adapters; {', '.join(able)} do",
                    hint="quantise one adapter into the weights with --merge-adapter",
                )


def base_notes(adapters: Sequence[PeftAdapter], model: str, strict: bool) -> list[str]:
    """Of adapters that name another base model; with `strict` an InputError."""
    notes = [note for adapter in adapters if (note := check_base(adapter, model)) is not None]
    for note in notes:
        if strict:
            raise InputError(note)
        log.warning("%s", note)
    return notes


def _check_against(checkpoint: Checkpoint, adapter: PeftAdapter) -> None:
    names = PlainNames(checkpoint.tensors)
    check_norms(adapter, adapter.updates, lambda module: float(names.get(f"{module}.weight").norm()))
