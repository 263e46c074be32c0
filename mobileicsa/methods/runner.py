"""`run`: a method and its baselines over seeds, into a folder with result.json, a figure and the method's artifacts."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mobileicsa.io.hashing import sha256_bytes
from mobileicsa.io.json_file import dump_json
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.machine import peak_memory
from mobileicsa.io.paths import check_output
from mobileicsa.io.staging import Staging
from mobileicsa.methods.base import Method, Plan, RunConfig, Step, Trial, find_method
from mobileicsa.methods.overrides import configure
from mobileicsa.methods.result import Estimate, Metrics, Result
from mobileicsa.quantize.steps import Progress

RESULT, TRIALS, FIGURE = "result.json", "trials.json", "figure.svg"
# Kept beside a trial's own notes.
SECONDS = "seconds"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """`overrides` are key=value; an interrupted run goes on, with `overwrite` only where `resume` says so."""

    name: str
    size: str
    output: Path
    overrides: Sequence[str] = ()
    overwrite: bool = False
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A checked request: nothing is missing, and the output may be written."""

    request: RunRequest
    method: Method[Any]
    config: RunConfig
    plan: Plan
    run_id: str

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.config.seed, self.config.seed + self.config.seeds))

    @property
    def steps(self) -> list[tuple[str, Step, int]]:
        """(title, step, seed) in the order in which they run."""
        prepare = () if self.plan.prepare is None else (self.plan.prepare,)
        return [(step_title(step, seed), step, seed) for seed in self.seeds for step in (*prepare, *self.plan.variants)]

    def settings(self) -> dict[str, Any]:
        """The config as JSON values, the data's place left out: it may tell who ran it where."""
        fields = {name: value for name, value in dataclasses.asdict(self.config).items() if name != "data"}
        return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}


def step_title(step: Step, seed: int) -> str:
    return f"{step.name}, seed {seed}"


def plan_run(request: RunRequest) -> RunPlan:
    """Check everything before any work: method, size, overrides, data, output."""
    method = find_method(request.name)
    config = configure(method.sizes, request.size, request.overrides)
    check_output(request.output, None, request.overwrite)
    read = method.check(config)
    draft = RunPlan(request=request, method=method, config=config, plan=method.plan(config), run_id="")
    # The size names the defaults only; the config is what runs.
    inputs = {"method": request.name, "config": draft.settings(), "read": read, "version": version("mobileicsa")}
    return dataclasses.replace(draft, run_id=sha256_bytes(dump_json(inputs))[:16])


def run(
    plan: RunPlan,
    progress: Progress,
    *,
    environment: Mapping[str, Any],
    draw: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """Carry out a checked plan; returns result.json's document. `draw` makes the figure's SVG text of it.

    Every finished step is kept beside the output until the whole run is done; the same request goes on from there.
    """
    request = plan.request
    with OutputLock(request.output):
        staging = Staging(request.output, plan.run_id)
        if staging.root.exists() and request.overwrite and not request.resume:
            staging.discard()
        with staging:
            trials = _Trials(plan, staging, progress).run()
            document = _conclude(plan, trials, staging, environment)
            staging.write_bytes(FIGURE, draw(document).encode())
            staging.write_json(RESULT, document)
            staging.commit(overwrite=request.overwrite)
    return document


class _Trials:
    """Every variant on every seed, those finished by an earlier run from the store."""

    def __init__(self, plan: RunPlan, staging: Staging, progress: Progress) -> None:
        self.plan, self.store, self.progress = plan, staging.stages, progress

    def run(self) -> dict[str, list[Trial]]:
        trials: dict[str, list[Trial]] = {step.name: [] for step in self.plan.plan.variants}
        for seed in self.plan.seeds:
            shared = self._prepared(seed)
            for step in self.plan.plan.variants:
                trials[step.name].append(self._trial(step, seed, shared))
        return trials

    def _prepared(self, seed: int) -> Mapping[str, Any]:
        step, method, config = self.plan.plan.prepare, self.plan.method, self.plan.config
        if step is None:
            return {}

        def work(tick: Callable[[], None]) -> Trial:
            return Trial(metrics={}, tensors=method.prepare(config, seed, tick))

        return self._kept(step, seed, work).tensors

    def _trial(self, step: Step, seed: int, shared: Mapping[str, Any]) -> Trial:
        method, config = self.plan.method, self.plan.config
        return self._kept(step, seed, lambda tick: method.run(config, step.name, seed, shared, tick))

    def _kept(self, step: Step, seed: int, work: Callable[[Callable[[], None]], Trial]) -> Trial:
        """The step's stored result, or that of `work`, which is stored first."""
        stage = f"{step.name}-{seed}"
        if not self.store.done(stage, self.plan.run_id):
            start = time.monotonic()
            trial = work(self.progress.step(step_title(step, seed), step.ticks))
            notes = {**trial.notes, SECONDS: round(time.monotonic() - start, 2)}
            self.store.save(stage, self.plan.run_id, trial.tensors, {"metrics": dict(trial.metrics), "notes": notes})
        tensors, data = self.store.load(stage)
        return Trial(metrics=data["metrics"], tensors=tensors, notes=data["notes"])


def _conclude(
    plan: RunPlan, trials: Mapping[str, Sequence[Trial]], staging: Staging, environment: Mapping[str, Any]
) -> dict[str, Any]:
    table = {name: _estimates(found) for name, found in trials.items()}
    own, *others = trials
    artifacts = dict(plan.method.write(plan.config, trials, staging))
    seeds = plan.seeds
    staging.write_json(
        TRIALS,
        {
            name: [{"seed": s, "metrics": dict(t.metrics), **t.notes} for s, t in zip(seeds, found, strict=True)]
            for name, found in trials.items()
        },
    )
    result = Result(
        method=plan.request.name,
        metrics=table[own],
        baselines={name: table[name] for name in others},
        verdict=plan.method.judge(plan.config, table),
        artifacts={**artifacts, "figure": FIGURE, "trials": TRIALS},
        environment={
            **environment,
            "size": plan.request.size,
            "config": plan.settings(),
            "seeds": list(seeds),
            "seconds": {name: [trial.notes[SECONDS] for trial in found] for name, found in trials.items()},
            "peak_rss_bytes": peak_memory(),
        },
    )
    return result.to_json()


def _estimates(trials: Sequence[Trial]) -> Metrics:
    return {name: Estimate.of([trial.metrics[name] for trial in trials]) for name in trials[0].metrics}
