"""`Staging`: an artifact is built beside its place and appears there in one step, complete or not at all."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mobileicsa.core.errors import UsageError
from mobileicsa.io.atomic import WriteFault, copy_file, sync_folder, write_bytes, write_tensors, writing
from mobileicsa.io.faults import fault_point
from mobileicsa.io.json_file import write_json
from mobileicsa.io.paths import inside
from mobileicsa.io.stages import StageStore

if TYPE_CHECKING:  # torch takes a second to import, and most callers only write bytes
    from torch import Tensor

# What makes a folder an artifact: the last file written, the first removed.
MANIFEST = "manifest.json"
REPLACED_SUFFIX = ".replaced-by-mobileicsa"
_RUN_ID = re.compile(r"[0-9a-z]{4,64}")

log = logging.getLogger(__name__)


class Staging:
    """Work space of one run: `<output>.partial-<run_id>/`, found again by a run with the same inputs.

    - `folder`: the artifact in the making; `commit` renames it to `output`;
    - `stages`: results of finished stages, which never become part of the artifact.

    Leaving the `with` block by an error keeps the work space of a `resumable` run and says so in a note on the
    error, with the `flag` that makes the command go on from it; unless the disk failed: then it is removed, because a
    full disk is what it may have caused.
    """

    def __init__(self, output: Path, run_id: str, *, resumable: bool = True, flag: str | None = "--resume") -> None:
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"run id {run_id!r}: 4 to 64 lower-case letters or digits")
        # Resolved, so that an output that is a link to a folder is replaced where it really lies.
        self.output = output.resolve()
        self.root = self.output.with_name(f"{self.output.name}.partial-{run_id}")
        self.folder = self.root / "artifact"
        self.stages = StageStore(self.root / "stages")
        self._resumable, self._flag = resumable, flag
        self._replaced = self.output.with_name(self.output.name + REPLACED_SUFFIX)

    def __enter__(self) -> Self:
        if not self._resumable:
            self.discard()
        with writing(self.root):
            self._recover()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, WriteFault) or (error is not None and not self._resumable):
            self.discard()
        elif error is not None and self.root.exists():
            again = "the same command" + (f" with {self._flag}" if self._flag else "")
            error.add_note(f"finished steps are kept in {self.root}: {again} goes on from there")

    def path(self, name: str) -> Path:
        """Where the artifact's file `name` is written; its folder exists afterwards."""
        path = inside(self.folder, name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_bytes(self, name: str, data: bytes) -> None:
        write_bytes(self.path(name), data)

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path(name), value)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        write_tensors(self.path(name), tensors)

    def copy(self, name: str, source: Path) -> None:
        copy_file(source, self.path(name))

    def discard(self) -> None:
        """Remove the work space; the output stays as it was."""
        _remove(self.root, self.folder)

    def commit(self, *, overwrite: bool = False) -> None:
        """Flush everything to the disk and give it the output's name; an old artifact lives until then."""
        with writing(self.output):
            occupied = self.output.is_dir() and any(self.output.iterdir())
        if occupied and not overwrite:
            raise UsageError(f"{self.output}: was filled while this run worked", hint="replace it with --overwrite")
        fault_point("commit", "before")
        with writing(self.output):
            _flush(self.folder)
            if occupied:
                os.rename(self.output, self._replaced)
                fault_point("commit", "kill")
            try:
                os.rename(self.folder, self.output)
            except OSError:
                if occupied:
                    os.rename(self._replaced, self.output)
                raise
            sync_folder(self.output.parent)
        fault_point("commit", "after")
        _remove(self._replaced, self._replaced)
        self.discard()

    def _sweep(self) -> None:
        """Remove files that an earlier run was killed in the middle of: they would become part of the artifact."""
        for left in filter(_unfinished, list(self.root.rglob("*"))):
            left.unlink()

    def _recover(self) -> None:
        """Finish what a killed `commit` of an earlier run left: put the old artifact back, or away."""
        if not self._replaced.exists():
            return
        if self.output.exists():
            _remove(self._replaced, self._replaced)
        else:
            log.warning("%s: put back after an interrupted run", self.output)
            os.rename(self._replaced, self.output)


def _unfinished(path: Path) -> bool:
    """A file, by its name: ours end in .tmp (see `atomic`), safetensors' are .tmp and random letters."""
    return path.is_file() and (path.suffix == ".tmp" or path.name.startswith(".tmp"))


def _remove(root: Path, artifact: Path) -> None:
    """Remove `root`; a kill on the way leaves no `artifact` in it that looks complete."""
    with suppress(OSError):
        (artifact / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)


def _flush(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(parent, file), "rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(parent))
