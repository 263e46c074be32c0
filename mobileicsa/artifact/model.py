"""`QuantizedModel` beside `FloatModel`: one interface for everything that generates text or is measured."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileicsa.artifact import layout
from mobileicsa.artifact.adapters import names_in, read_prepared
from mobileicsa.artifact.float_model import FLOAT, FloatModel
from mobileicsa.artifact.generates import Generates
from mobileicsa.artifact.manifest import check_files, read_manifest, require_files
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.core.errors import EnvironmentFault, InputError, UsageError, VerificationError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.program.adapters import PlanAdapter
from mobileicsa.program.backend import ExactBackend, find_backend
from mobileicsa.program.frozen import FrozenModel, build_adapted
from mobileicsa.program.generate import TokenRunner
from mobileicsa.program.simulator import SimulatorSession, sequence_logits

__all__ = ["FLOAT", "SIMULATOR", "FloatModel", "QuantizedModel", "load_model"]

SIMULATOR = "simulator"


class QuantizedModel(Generates):
    """An artifact folder opened on one back end ("simulator", "onnx", "executorch", ...)."""

    def __init__(
        self,
        folder: Path,
        plan: QuantPlan,
        target: Target,
        manifest: dict[str, Any],
        backend: str,
        files: Path | None = None,
    ) -> None:
        self.folder, self.plan, self.target, self.manifest, self.backend = folder, plan, target, manifest, backend
        self._files = files
        self.spec = plan.spec
        self.name = str(folder)
        self.tokenizer = Tokenizer(folder)
        self.bos_id = plan.spec.bos_id
        self.prefixed = bool(plan.prefix_ids)
        self.first = () if self.prefixed or self.bos_id is None else (self.bos_id,)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        backend: str = SIMULATOR,
        target: str | None = None,
        threads: int | None = None,
        exact: bool = False,
        adapter: str | None = None,
    ) -> QuantizedModel:
        """Open an artifact. Its files are checked against the manifest first.

        `exact`: on an `ExactBackend`, the simulator's own arithmetic instead of the fast kernels. `adapter`: one of
        the artifact's, to begin with (see `use_adapter`).
        Raises InputError (not an artifact), VerificationError (damaged), EnvironmentFault (back end not installed).
        """
        folder = Path(folder)
        manifest, frozen = read_checked(folder)
        model = cls(folder, frozen.plan, target_of(manifest, target), manifest, backend)
        model._open(frozen, threads, exact, read_checked_adapters(folder, manifest))
        model.use_adapter(adapter)
        return model

    @classmethod
    def of_frozen(
        cls,
        folder: Path,
        frozen: FrozenModel,
        target: Target,
        backend: str,
        *,
        files: Path | None = None,
        threads: int | None = None,
        adapters: Sequence[PlanAdapter] = (),
    ) -> QuantizedModel:
        """A frozen model with the tokenizer of `folder`; a back end reads what it wrote from `files`. Unchecked."""
        model = cls(folder, frozen.plan, target, {}, backend, files)
        model._open(frozen, threads, False, adapters)
        return model

    def _open(self, frozen: FrozenModel, threads: int | None, exact: bool, adapters: Sequence[PlanAdapter]) -> None:
        self.frozen = frozen
        self.adapters = {adapter.name: adapter for adapter in adapters}
        self.adapter: str | None = None
        if self.backend == SIMULATOR:
            decoder = build_adapted(frozen, adapters, primitive=self.target.nonlinear == "primitive")
            self.session: Any = SimulatorSession(decoder, self.target)
        else:
            self.session = self._open_backend(threads, exact)
        self.runner = TokenRunner(self.session, self.target, *self._prefix(frozen))

    def _prefix(self, frozen: FrozenModel) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]:
        self.prefix_rows, self.prefix_logits = frozen.prefix_cache(), frozen.tensors.get("prefix.logits")
        logits = None if self.prefix_logits is None else self.prefix_logits.numpy()
        return [rows.numpy() for pair in self.prefix_rows for rows in pair], logits

    def use_adapter(self, name: str | None) -> None:
        """Of every following call; None: the base alone. A conversation starts anew.

        InputError where the artifact has no such adapter.
        """
        if name is None and self.adapter is None:
            return
        adapter = None if name is None else self._adapter(name)
        if self.backend == SIMULATOR:
            self.session.use_adapter(adapter)
        else:
            suffix = find_backend(self.backend).adapter_suffix  # type: ignore[attr-defined]
            self.session.use_adapter(None if name is None else layout.adapter_file(self.exported, name, suffix))
        tensors = self.frozen.tensors if adapter is None else {**self.frozen.tensors, **adapter.prefix}
        self.runner.restart(*self._prefix(FrozenModel(self.plan, tensors)))
        self.adapter = name

    def _adapter(self, name: str) -> PlanAdapter:
        if name not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise InputError(
                f"--adapter {name}: the artifact has {known}",
                hint="give adapters to `mobileicsa quantize`, or to `mobileicsa export` for a program with new ones",
            )
        return self.adapters[name]

    @property
    def exported(self) -> Path:
        """The folder of this back end's files."""
        if self._files is not None:
            return self._files
        default = self.manifest["default_target"]
        return self.folder / layout.backend_folder(self.target.name, self.backend, default)

    def _open_backend(self, threads: int | None, exact: bool) -> Any:
        back_end = find_backend(self.backend)
        reason = back_end.unavailable()
        if reason is not None:
            raise EnvironmentFault(f"--backend {self.backend}: {reason}")
        if self.backend not in self.target.backends or not self.exported.is_dir():
            raise VerificationError(
                f"{self.folder}: was exported for {', '.join(self.target.backends)}, not for {self.backend}",
                hint="run `mobileicsa export` for a target with that back end",
            )
        if self._files is None:
            require_files(self.folder, self.manifest, self.exported.relative_to(self.folder).as_posix() + "/")
        if not exact:
            return back_end.open(self.exported, self.spec, self.target, threads=threads)
        if not isinstance(back_end, ExactBackend):
            raise UsageError(f"back end {self.backend} has no exact arithmetic")
        return back_end.open_exact(self.exported, self.spec, self.target)

    @property
    def max_window(self) -> int:
        limit = self.spec.max_context if self.backend == SIMULATOR else self.target.context
        return limit - max(len(self.plan.prefix_ids), 1)

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        if self.prefixed:
            assert self.prefix_logits is not None
            yield self.prefix_logits[None]
        fed = self._fed(ids)
        if self.backend == SIMULATOR:
            yield from sequence_logits(self.session.decoder, fed, self.prefix_rows if self.prefixed else None)
        elif fed:
            self.runner.reset()
            yield from (torch.from_numpy(rows.copy()) for rows in self.runner.prefill_chunks(fed))

    def branch_logits(self, context: Sequence[int], branches: Sequence[Sequence[int]]) -> list[Tensor]:
        """Per branch, predictions (len(branch), vocab) of its tokens behind `context`, as `logits` has them.

        The simulator reads the context once for all branches; its integers are those of one branch at a time.
        """
        fed = self._behind_bos(context)
        if self.backend != SIMULATOR or not fed:
            return [self.logits([*context, *branch])[-len(branch) :] for branch in branches]
        found: list[Tensor] = self.session.branch_logits(fed, branches, self.prefix_rows if self.prefixed else None)
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the artifact; the target must not exist or be empty. Appears whole or not at all."""
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target}: exists", hint="choose a new folder")
        problems = check_files(self.folder, self.manifest)
        if problems:
            raise VerificationError(f"{self.folder}: {problems[0]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            copy = Path(scratch) / "artifact"
            shutil.copytree(self.folder, copy)
            copy.rename(target)

    def close(self) -> None:
        self.session.close()


def read_checked(folder: Path) -> tuple[dict[str, Any], FrozenModel]:
    """Manifest, plan and integers of an artifact, whose files are what the manifest says.

    Raises InputError (not an artifact), VerificationError (damaged).
    """
    manifest = read_manifest(folder)
    for name in (layout.PLAN, layout.WEIGHTS, layout.TOKENIZER):
        require_files(folder, manifest, name)
    frozen = read_frozen(folder)
    if manifest.get("scheme") != frozen.plan.scheme.name:
        raise VerificationError(
            f"{folder}: {layout.MANIFEST} says scheme {manifest.get('scheme')}, {layout.PLAN} "
            f"{frozen.plan.scheme.name}",
            hint="the folder mixes two artifacts: copy it again or make it anew",
        )
    return manifest, frozen


def read_checked_adapters(folder: Path, manifest: dict[str, Any]) -> list[PlanAdapter]:
    """The artifact's adapters, whose files are what the manifest says."""
    names = names_in(manifest)
    if names:
        require_files(folder, manifest, layout.ADAPTERS + "/")
    return read_prepared(folder, names)


def read_frozen(folder: Path) -> FrozenModel:
    """Plan and integers of an artifact folder, unchecked."""
    plan = QuantPlan.from_json(read_json(folder / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES), layout.PLAN)
    return FrozenModel(plan, read_tensors(folder / layout.WEIGHTS))


def target_of(manifest: dict[str, Any], name: str | None) -> Target:
    """The named target of an artifact, or its first."""
    targets: dict[str, Any] = manifest["targets"]
    chosen = name or manifest["default_target"]
    if chosen not in targets:
        raise InputError(f"target {chosen!r} is not in this artifact; it has {', '.join(targets)}")
    return Target.from_mapping(targets[chosen], layout.MANIFEST)


def is_artifact(name: str) -> bool:
    return (Path(name) / layout.MANIFEST).is_file()


def load_model(
    name: str,
    backend: str | None = None,
    *,
    target: str | None = None,
    threads: int | None = None,
    adapter: str | None = None,
) -> QuantizedModel | FloatModel:
    """An artifact folder on a back end (default simulator) and target (default its first), with one of its adapters
    if it is named, or a checkpoint in float."""
    if is_artifact(name):
        if backend == FLOAT:
            raise UsageError(f"{name}: is an artifact", hint="--backend float takes the original model")
        return QuantizedModel.from_pretrained(
            name, backend=backend or SIMULATOR, target=target, threads=threads, adapter=adapter
        )
    if adapter is not None:
        raise UsageError(f"{name}: is not an artifact, --adapter {adapter} needs one", hint="quantize it first")
    if target is not None:
        raise UsageError(f"{name}: is not an artifact, --target {target} needs one", hint="quantize it first")
    if backend not in (None, FLOAT):
        if Path(name).is_dir() and (Path(name) / layout.PLAN).is_file():
            read_manifest(Path(name))
        raise UsageError(f"{name}: is not an artifact, --backend {backend} needs one", hint="quantize it first")
    return FloatModel.from_pretrained(name)


def integer_logits(logits: np.ndarray[Any, np.dtype[np.float32]], plan: QuantPlan) -> Tensor:
    """Logits back on their integer grid."""
    encoding = plan.edges["head.logits"]
    return torch.round(torch.from_numpy(logits) / encoding.scale[0]).to(torch.int32) + encoding.zero_point[0]
