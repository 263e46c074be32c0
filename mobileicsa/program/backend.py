"""What a back end is: it lowers the frozen program's methods to files, and opens them again to run.

Back ends register in the entry-point group `mobileicsa.backends`; this package never imports one by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder

IntArray = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a writer made: its files, and facts for the report (JSON values)."""

    files: tuple[Path, ...]
    facts: dict[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """A loaded artifact. Not thread-safe."""

    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        """`method` is prefill or decode; token_ids (1, T); `cache` the layers' keys and values in order of
        `methods.input_names`. Returns logits (1, T, vocab) and the new rows, valid until the next call."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class AnyRowsSession(Session, Protocol):
    """A session that, where `any_rows` is true, takes a cache of fewer rows than the target's context."""

    any_rows: bool


@runtime_checkable
class FillingSession(Session, Protocol):
    """A session that saves the vocabulary's product where nobody reads its result: all of a prompt but its end."""

    def fill(self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]) -> list[Array]:
        """The new rows alone, as `run` gives them."""
        ...


class Backend(Protocol):
    """`name` is also the artifact's sub-folder."""

    name: str

    def unavailable(self) -> str | None:
        """Why this back end cannot work here (the install line included), or None."""
        ...

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        """Lower both methods of a frozen (or float32) decoder into `folder`.

        `metadata`: bos_id, eos_ids, prefix_ids, context; tokenizer_dir, where the tokenizer lies as seen from `folder`.
        Raises Unsupported, never leaves an op silently in float.
        """
        ...

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session: ...

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        """Where the operators of one decode step of a written model run on this machine.

        `integer`, `float`, `boundary` (conversions between the two) and `outside` (of the accelerated part) count
        kernels, `by_op` the same for each operator, `products` matrix products in integer and float kernels.
        `fallbacks` lists {"node", "reason"} of what runs in float or outside although `target` does not say so: a
        product with a weight on every target, any operator on a primitive one.
        """
        ...


@runtime_checkable
class ExactBackend(Backend, Protocol):
    """A back end that can also compute a written file exactly as the simulator does, at any cost in speed.

    It shows that the file means the simulator's integers; what its fast kernels round otherwise is their own.
    """

    def open_exact(self, folder: Path, spec: ModelSpec, target: Target) -> Session: ...


@runtime_checkable
class AdaptingBackend(Backend, Protocol):
    """A back end that lowers a decoder with room for adapters (see program/adapters.py)."""

    adapter_suffix: str  # of an adapter's file

    def write_adapter(self, inputs: Mapping[str, Tensor], path: Path) -> None:
        """An adapter, padded, its inputs named as `adapter_inputs` has them, into a file that
        `AdaptingSession.use_adapter` takes."""
        ...


@runtime_checkable
class AdaptingSession(Session, Protocol):
    """A session that changes adapters between calls."""

    def use_adapter(self, file: Path | None) -> None:
        """Of every following call; None: the base alone. VerificationError where the file does not fit the program."""
        ...


class StageSession(Protocol):
    """Loaded stage programs. Not thread-safe."""

    def run(self, name: str, inputs: Sequence[Array]) -> list[Array]:
        """What the program of that name gives, in its order."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class StagedBackend(Backend, Protocol):
    """A back end that lowers programs of any module, which hand integers to each other, into one folder."""

    separate_files: bool  # of each program, so that further ones cost no stage anything

    def write_stages(self, programs: Mapping[str, ExportedProgram], target: Target, folder: Path) -> Written:
        """Equal weights are stored once. Facts: {name: facts of its program}."""
        ...

    def open_stages(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> StageSession: ...


@runtime_checkable
class ResumableBackend(Backend, Protocol):
    """A back end whose `write` goes on in a folder where it was stopped while writing the same decoder and target."""

    resumes: bool


@runtime_checkable
class CompiledBackend(Backend, Protocol):
    """A back end whose files depend on tools: the distributions of which another version may write other files."""

    compilers: tuple[str, ...]


class BrokenBackend:
    """A registered back end whose package cannot be imported: it says so when it is asked for, the others work."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.reason = name, f"its package cannot be loaded: {type(error).__name__}: {error}"

    def unavailable(self) -> str:
        return self.reason

    def __getattr__(self, name: str) -> NoReturn:
        raise EnvironmentFault(f"back end {self.name}: {self.reason}")


def backends() -> dict[str, Backend]:
    """Every registered back end by name, installed or not."""
    return {point.name: _loaded(point) for point in entry_points(group="mobileicsa.backends")}


def _loaded(point: EntryPoint) -> Backend:
    try:
        made: Backend = point.load()()
    except Exception as error:  # whatever a foreign package does when it is imported
        return BrokenBackend(point.name, error)
    return made


@runtime_checkable
class CompilingBackend(Backend, Protocol):
    """A back end that compiles but runs nothing here: `compiles_only` says for what, and what runs it."""

    compiles_only: str


@runtime_checkable
class TargetedBackend(Backend, Protocol):
    """A back end of several targets: `target` names the one that is meant where none is."""

    target: str


@runtime_checkable
class EmulatedBackend(Backend, Protocol):
    """A back end whose device is imitated here: `emulator` says by what, and how slow that is."""

    emulator: str


def emulator_of(name: str) -> str | None:
    """What imitates the device of this back end here; None where nothing does, or it is not installed."""
    found = backends().get(name)
    usable = found is not None and found.unavailable() is None
    return found.emulator if usable and isinstance(found, EmulatedBackend) else None


def cannot_run(name: str) -> str | None:
    """Why nothing runs on this back end here: it is not installed, or it compiles only. None: it runs."""
    found = find_backend(name)
    reason = found.unavailable()
    if reason is None and isinstance(found, CompilingBackend):
        return found.compiles_only
    return reason


def find_backend(name: str) -> Backend:
    found = backends()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        raise InputError(
            f"back end {name!r} is unknown; known are {', '.join(sorted(found))}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return found[name]
