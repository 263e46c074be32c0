"""An artifact on a back end that it was not exported for, or a slice of it: lowered first, into a cache folder.

Compilers take minutes, and what they write is kept: `$MOBILEICSA_CACHE`, or `mobileicsa` in the user's cache folder.
An entry is what `mobileicsa export` writes; it may be deleted at any time.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.exported import damage, export_artifact
from mobileicsa.artifact.manifest import read_manifest
from mobileicsa.artifact.model import (
    FLOAT,
    SIMULATOR,
    FloatModel,
    QuantizedModel,
    is_artifact,
    load_model,
    read_checked,
    read_checked_adapters,
    target_of,
)
from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import WriteFault
from mobileicsa.io.hashing import sha256_bytes, sha256_file
from mobileicsa.io.lock import OutputLock
from mobileicsa.program.backend import CompiledBackend, cannot_run, find_backend
from mobileicsa.program.slices import parse_layers, slice_layers
from mobileicsa.program.targets import find_target, fitting, target_of_backend
from mobileicsa.quantize.steps import Progress

CACHE = "MOBILEICSA_CACHE"

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobileicsa"


class Lowered:
    """One artifact, or the slice START:STOP of its layers, for one target and one of its back ends."""

    def __init__(
        self,
        folder: Path,
        backend: str,
        target: str | None = None,
        layers: str | None = None,
        adapter: str | None = None,
    ) -> None:
        """`target` None: one of the artifact's, or else the one that this back end is for. `adapter`: the one of the
        artifact's with which the model begins; the program then has room for all of them.

        InputError, UsageError: no such back end, target or slice.
        """
        self.folder, self.backend, self.layers, self.adapter = folder, backend, layers, adapter
        if backend != SIMULATOR:
            find_backend(backend)
        manifest, frozen = read_checked(folder)
        self.adapters = [] if adapter is None else read_checked_adapters(folder, manifest)
        spec = frozen.plan.spec
        kept = range(spec.num_layers) if layers is None else parse_layers(layers, spec.num_layers)
        self.frozen = slice_layers(frozen, kept)
        self.target = fitting(_target(manifest, backend, target), spec)
        made = manifest["targets"].get(self.target.name, {"backends": []})
        self.exported = len(kept) == spec.num_layers and backend in made["backends"]
        tools = [(name, version(name)) for name in ("mobileicsa", *_compilers(backend))]
        facts = (sha256_file(folder / layout.MANIFEST), self.target, backend, kept, tools, bool(adapter))
        self.files = cache_folder() / "lowered" / sha256_bytes(repr(facts).encode())[:16]

    def simulator(self) -> QuantizedModel:
        """The reference: the same program, run by the simulator."""
        return self._begun(
            QuantizedModel.of_frozen(self.folder, self.frozen, self.target, SIMULATOR, adapters=self.adapters)
        )

    def _begun(self, model: QuantizedModel) -> QuantizedModel:
        model.use_adapter(self.adapter)
        return model

    def open(self, progress: Progress, *, threads: int | None = None) -> QuantizedModel:
        """The model on its back end: the artifact's own files, or lowered before if it was not yet.

        EnvironmentFault where the back end is not installed.
        """
        if self.backend == SIMULATOR:
            return self.simulator()
        if self.exported:
            return QuantizedModel.from_pretrained(
                self.folder, backend=self.backend, target=self.target.name, threads=threads, adapter=self.adapter
            )
        reason = cannot_run(self.backend)
        if reason is not None:
            raise EnvironmentFault(f"--backend {self.backend}: {reason}")
        self._lower(progress)
        files = self.files / self.backend
        model = QuantizedModel.of_frozen(
            self.folder,
            self.frozen,
            self.target,
            self.backend,
            files=files,
            threads=threads,
            adapters=self.adapters,
        )
        return self._begun(model)

    def _lower(self, progress: Progress) -> None:
        """Make the cache entry where there is none, or a damaged one; a run that makes it already is waited for.

        A whole entry is only read: the cache may be one that cannot be written.
        """
        if self._wrong() is None:
            return
        alone = replace(self.target, backends=(self.backend,))
        try:
            with OutputLock(self.files.with_suffix(".made"), waits=True):
                wrong = self._wrong()
                if wrong is None:
                    return
                if self.files.exists():
                    log.warning("%s: %s; it is made again", self.files, wrong)
                export_artifact(
                    self.folder,
                    alone,
                    self.files,
                    progress,
                    layers=self.layers,
                    overwrite=True,
                    adapters=self.adapters,
                )
        except WriteFault as error:
            hint = f"free some disk space, or name another folder for what is lowered with {CACHE}"
            raise WriteFault(error.message, hint=hint) from error

    def _wrong(self) -> str | None:
        return damage(self.files) if self.files.exists() else "new"


def _compilers(backend: str) -> tuple[str, ...]:
    """Installed distributions whose versions the files depend on."""
    made = find_backend(backend) if backend != SIMULATOR else None
    return made.compilers if isinstance(made, CompiledBackend) and made.unavailable() is None else ()


def _target(manifest: dict[str, Any], backend: str, name: str | None) -> Target:
    default = manifest["default_target"]
    made = {one: target_of(manifest, one) for one in (default, *manifest["targets"])}
    if name is None and backend == SIMULATOR:
        return made[default]
    if name is None:
        able = [target for target in made.values() if backend in target.backends]
        return able[0] if able else target_of_backend(backend)
    target = made[name] if name in made else find_target(name)
    if backend not in (SIMULATOR, *target.backends):
        raise InputError(f"--target {target.name}: is written by {', '.join(target.backends)}, not by {backend}")
    return target


def open_for(
    name: str,
    backend: str | None,
    progress: Progress,
    *,
    target: str | None = None,
    threads: int | None = None,
    adapter: str | None = None,
) -> QuantizedModel | FloatModel:
    """As `load_model`, but an artifact that was not exported for this back end or target is lowered for it first."""
    if is_artifact(name) and backend != FLOAT:
        manifest, asked = read_manifest(Path(name)), backend or SIMULATOR
        made = manifest["targets"].get(target or manifest["default_target"])
        if made is None or asked not in (SIMULATOR, *made["backends"]):
            return Lowered(Path(name), asked, target, adapter=adapter).open(progress, threads=threads)
    return load_model(name, backend, target=target, threads=threads, adapter=adapter)
