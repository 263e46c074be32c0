"""An artifact on a back end that it was not exported for, or a slice of it: lowered first, into a cache folder.

Compilers take minutes, and what they write is kept: `$MOBILEICSA_CACHE`, or `mobileicsa` in the user's cache folder.
An entry is what `mobileicsa export` writes; it may be deleted at any time.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from mobileicsa.artifact.exported import TARGET_FILE, export_artifact
from mobileicsa.artifact.manifest import read_manifest
from mobileicsa.artifact.model import FLOAT, SIMULATOR, FloatModel, QuantizedModel, is_artifact, load_model
from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.core.target import Target
from mobileicsa.io.hashing import sha256_bytes
from mobileicsa.program.backend import find_backend
from mobileicsa.program.slices import parse_layers, slice_layers
from mobileicsa.program.targets import find_target, target_of_backend
from mobileicsa.quantize.steps import Progress

CACHE = "MOBILEICSA_CACHE"


def cache_folder() -> Path:
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobileicsa"


class Lowered:
    """One artifact, or the slice START:STOP of its layers, for one target and one of its back ends."""

    def __init__(self, folder: Path, backend: str, target: str | None = None, layers: str | None = None) -> None:
        """`target` None: the one that this back end is for. InputError, SchemeError: no such back end or slice."""
        self.folder, self.backend, self.layers = folder, backend, layers
        manifest = read_manifest(folder)
        if backend != SIMULATOR:
            find_backend(backend)
        self.target = _target(manifest["default_target"], backend, target)
        self.frozen = QuantizedModel.from_pretrained(folder, backend=SIMULATOR).frozen
        if layers is not None:
            self.frozen = slice_layers(self.frozen, parse_layers(layers, self.frozen.plan.spec.num_layers))
        self.target = _fitting(self.target, self.frozen.plan.spec.max_context)
        facts = (manifest.get("checksum"), self.target, backend, layers, version("mobileicsa"))
        self.files = cache_folder() / "lowered" / sha256_bytes(repr(facts).encode())[:16]

    def simulator(self) -> QuantizedModel:
        """The reference: the same program, run by the simulator."""
        return QuantizedModel.of_frozen(self.folder, self.frozen, self.target, SIMULATOR)

    def open(self, progress: Progress, *, threads: int | None = None) -> QuantizedModel:
        """The model on its back end, lowered before if it was not yet. EnvironmentFault where that is not installed."""
        if self.backend == SIMULATOR:
            return self.simulator()
        reason = find_backend(self.backend).unavailable()
        if reason is not None:
            raise EnvironmentFault(f"--backend {self.backend}: {reason}")
        if not (self.files / TARGET_FILE).is_file():
            export_artifact(self.folder, self.target, self.files, progress, layers=self.layers)
        files = self.files / self.backend
        return QuantizedModel.of_frozen(
            self.folder, self.frozen, self.target, self.backend, files=files, threads=threads
        )


def _target(default: str, backend: str, name: str | None) -> Target:
    """That target, or this back end's own, written by this back end alone."""
    if name is None:
        target = find_target(default) if backend == SIMULATOR else target_of_backend(backend)
    else:
        target = find_target(name)
    if backend == SIMULATOR:
        return target
    if backend not in target.backends:
        raise InputError(f"--target {target.name}: is written by {', '.join(target.backends)}, not by {backend}")
    return replace(target, backends=(backend,))


def _fitting(target: Target, max_context: int) -> Target:
    if max_context >= target.context:
        return target
    return replace(target, context=max_context, prefill_chunk=min(target.prefill_chunk, max_context // 2))


def open_for(
    name: str, backend: str | None, progress: Progress, *, target: str | None = None, threads: int | None = None
) -> QuantizedModel | FloatModel:
    """As `load_model`, but an artifact that was not exported for this back end or target is lowered for it first."""
    if backend not in (None, SIMULATOR, FLOAT) and is_artifact(name):
        made = read_manifest(Path(name))["targets"]
        chosen = [made[target]] if target in made else made.values() if target is None else []
        if not any(backend in one["backends"] for one in chosen):
            return Lowered(Path(name), backend, target).open(progress, threads=threads)
    return load_model(name, backend, target=target, threads=threads)
