"""What a research method is to the runner, and the list of those there are; none is imported before it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mobileicsa.core.errors import UsageError

if TYPE_CHECKING:  # torch takes a second to import, and the list of methods needs none
    from torch import Tensor

    from mobileicsa.io.staging import Staging
    from mobileicsa.methods.result import Metrics, Verdict

SIZES = ("smoke", "small", "full")
Tick = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every method's config has. Seeds run are seed, seed + 1, ...; `data` is None where no folder was named."""

    data: Path | None = None
    seed: int = 0
    seeds: int = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of a run that is kept once it is finished. `weight`: expected time in any unit, by default the ticks."""

    name: str
    ticks: int
    weight: float | None = None

    @property
    def share(self) -> float:
        return float(self.ticks) if self.weight is None else self.weight


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs for each seed: first what all variants share, then the method itself (first), then its baselines."""

    variants: tuple[Step, ...]
    prepare: Step | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One variant on one seed: numbers, tensors to write artifacts of, JSON facts for `trials.json`."""

    metrics: Mapping[str, float]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


Config = TypeVar("Config", bound=RunConfig)


class Method(Protocol[Config]):
    """A method and its baselines.

    - `sizes`: "smoke", "small" and "full" configs; the class's own defaults are the paper's values;
    - `check`: a digest of everything read (data files, models), before any work; InputError where something is missing;
    - `prepare`: what all variants of a seed start from, if the plan has it;
    - `run`: train and score one variant; the same arguments give the same trial;
    - `judge`: from metrics by variant, in the plan's order;
    - `write`: artifacts into the staging folder from trials by variant and seed; returns role to path within it.
    """

    name: str
    sizes: Mapping[str, Config]

    def check(self, config: Config) -> str: ...

    def plan(self, config: Config) -> Plan: ...

    def prepare(self, config: Config, seed: int, tick: Tick) -> Mapping[str, Tensor]: ...

    def run(self, config: Config, variant: str, seed: int, shared: Mapping[str, Tensor], tick: Tick) -> Trial: ...

    def judge(self, config: Config, table: Mapping[str, Metrics]) -> Verdict: ...

    def write(self, config: Config, trials: Mapping[str, Sequence[Trial]], staging: Staging) -> Mapping[str, str]: ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of `mobileicsa methods`. `module` holds the method as METHOD."""

    name: str
    title: str
    paper: str
    hands_over: tuple[str, ...]
    data: tuple[str, ...]
    small_minutes: int
    module: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "hands_over": list(self.hands_over),
            "data": list(self.data),
            "sizes": list(SIZES),
            "small_minutes": self.small_minutes,
        }


METHODS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="reefl",
            title="recurrent early exits for federated learning",
            paper="arXiv 2405.14791 (ICML 2024)",
            hands_over=("early_exit_model",),
            data=("cifar10", "fsdd"),
            small_minutes=10,
            module="mobileicsa.methods.reefl",
        ),
        Entry(
            name="fedp2eft",
            title="federated learning to personalise LoRA ranks",
            paper="arXiv 2502.04387 (AAAI 2026)",
            hands_over=("adapter",),
            data=("pud_multilingual", "xcopa"),
            small_minutes=10,
            module="mobileicsa.methods.fedp2eft",
        ),
    )
}


def find_method(name: str) -> Method[Any]:
    """The method of this name, imported now; UsageError with the nearest name where there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
        raise UsageError(
            f"method {name!r} is unknown; there are {', '.join(METHODS)}",
            hint=f"did you mean {near[0]}?" if near else "`mobileicsa methods` lists them",
        )
    method: Method[Any] = import_module(METHODS[name].module).METHOD
    return method
