"""`QuantizedModel` and `FloatModel`: one interface for everything that generates text or is measured."""

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
from mobileicsa.artifact.generates import Generates
from mobileicsa.artifact.manifest import check_files, read_manifest, require_files
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.core.errors import EnvironmentFault, InputError, UsageError, VerificationError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.models.branches import branch_logits
from mobileicsa.models.load import load_decoder, read_spec
from mobileicsa.program.backend import ExactBackend, find_backend
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.generate import TokenRunner
from mobileicsa.program.methods import empty_cache
from mobileicsa.program.simulator import SimulatorSession, sequence_logits

SIMULATOR, FLOAT = "simulator", "float"


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
    ) -> QuantizedModel:
        """Open an artifact. Its files are checked against the manifest first.

        `exact`: on an `ExactBackend`, the simulator's own arithmetic instead of the fast kernels.
        Raises InputError (not an artifact), VerificationError (damaged), EnvironmentFault (back end not installed).
        """
        folder = Path(folder)
        manifest, frozen = read_checked(folder)
        model = cls(folder, frozen.plan, target_of(manifest, target), manifest, backend)
        model._open(frozen, threads, exact)
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
    ) -> QuantizedModel:
        """A frozen model with the tokenizer of `folder`; a back end reads what it wrote from `files`. Unchecked."""
        model = cls(folder, frozen.plan, target, {}, backend, files)
        model._open(frozen, threads, False)
        return model

    def _open(self, frozen: FrozenModel, threads: int | None, exact: bool) -> None:
        self.frozen = frozen
        prefix = frozen.prefix_cache()
        self.prefix_logits = frozen.tensors.get("prefix.logits")
        self.prefix_rows = prefix
        if self.backend == SIMULATOR:
            decoder = build_decoder(frozen, primitive=self.target.nonlinear == "primitive")
            self.session: Any = SimulatorSession(decoder, self.target)
        else:
            self.session = self._open_backend(threads, exact)
        logits = None if self.prefix_logits is None else self.prefix_logits.numpy()
        rows = [rows.numpy() for pair in prefix for rows in pair]
        self.runner = TokenRunner(self.session, self.target, rows, logits)

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


class FloatModel(Generates):
    """The unquantised checkpoint in float32, for comparison."""

    backend = FLOAT
    prefixed = False

    def __init__(self, name: str, folder_with_tokenizer: Path) -> None:
        checkpoint = open_checkpoint(name)
        self.name = name
        self.identity = checkpoint.identity
        self.spec = read_spec(checkpoint)
        self.tokenizer = Tokenizer(folder_with_tokenizer)
        self.bos_id = self.spec.bos_id
        self.first = () if self.bos_id is None else (self.bos_id,)
        self.decoder = load_decoder(checkpoint)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> FloatModel:
        """Load a checkpoint folder, GGUF file, bundled name or hub id."""
        with tempfile.TemporaryDirectory() as scratch:
            open_checkpoint(str(name)).write_tokenizer(Path(scratch))
            model = cls(str(name), Path(scratch))
        target = Target(name=FLOAT, description="", backends=(), context=min(2048, model.spec.max_context))
        rows = [r.numpy() for pair in empty_cache(model.spec, 0, torch.float32) for r in pair]
        model.runner = TokenRunner(SimulatorSession(model.decoder, target), target, rows, None)
        return model

    def start_behind(self, prefix: Sequence[int]) -> None:
        """Predict every text behind these tokens (BOS among them), as the artifact does whose prefix they are."""
        self.first = tuple(prefix)

    @property
    def max_window(self) -> int:
        return self.spec.max_context - max(len(self.first), 1)

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        unasked = len(self.first) - (self.bos_id is not None)
        for rows in sequence_logits(self.decoder, self._fed(ids), None):
            yield rows[unasked:]
            unasked = max(unasked - len(rows), 0)

    @torch.no_grad()
    def branch_logits(self, context: Sequence[int], branches: Sequence[Sequence[int]]) -> list[Tensor]:
        """Per branch, predictions (len(branch), vocab) of its tokens; `context` may be empty behind BOS only."""
        return branch_logits(self.decoder, self._behind_bos(context), branches, None)


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
    name: str, backend: str | None = None, *, target: str | None = None, threads: int | None = None
) -> QuantizedModel | FloatModel:
    """An artifact folder on a back end (default simulator) and target (default its first), or a checkpoint in float."""
    if is_artifact(name):
        if backend == FLOAT:
            raise UsageError(f"{name}: is an artifact", hint="--backend float takes the original model")
        return QuantizedModel.from_pretrained(name, backend=backend or SIMULATOR, target=target, threads=threads)
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
