"""ReeFL with its baselines and ablations, as `mobileicsa methods run reefl` runs it.

Backbone: a vision transformer; a shared recurrent exit module reads the CLS tokens of all blocks so far (see
`mobileicsa.models.early_exit_vit`). Clients hold as many blocks and exits as their budget allows, train all of these
exits on their own data, and learn from their own best exit; the server means each key over those who hold it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.hashing import sha256_parts, sha256_tree
from mobileicsa.io.staging import Staging
from mobileicsa.methods.base import Plan, Step, Tick, Trial
from mobileicsa.methods.reefl.artifact import write_model
from mobileicsa.methods.reefl.config import SIZES, ReeflConfig
from mobileicsa.methods.reefl.data import SOURCES, federate
from mobileicsa.methods.reefl.models import train_backbone, whole_spec
from mobileicsa.methods.reefl.rounds import Clients, federated
from mobileicsa.methods.reefl.start import read_vit
from mobileicsa.methods.reefl.variants import NAME, VARIANTS
from mobileicsa.methods.result import Metrics, Verdict, judge_above

CLAIM = "mean accuracy over exits lies above own heads with all-pairs distillation (DepthFL) and above ExclusiveFL"
RIVALS = ("depthfl", "exclusivefl")
# A step of the backbone's training beside a round of ReeFL.
START_WEIGHT = 0.4


class Reefl:
    name = NAME
    sizes: Mapping[str, ReeflConfig] = SIZES

    def check(self, config: ReeflConfig) -> str:
        if config.dim % config.heads or config.exits > config.blocks:
            raise InputError(
                f"dim={config.dim} heads={config.heads} blocks={config.blocks} exits={config.exits}: heads must divide "
                "dim, and exits be no more than blocks"
            )
        if config.clients < config.exits:
            raise InputError(f"clients={config.clients}: fewer than exits={config.exits}, so that no budget is whole")
        parts: list[tuple[str, str]] = [(task, SOURCES[task].identity(config.data)) for task in config.tasks]
        if config.start is not None:
            parts.append(("start", sha256_tree(config.start)))
        return sha256_parts(parts)

    def plan(self, config: ReeflConfig) -> Plan:
        ticks = config.rounds * len(config.tasks)
        steps = [Step(name=n, ticks=ticks, weight=ticks * VARIANTS[n].cost) for n in (NAME, *config.baselines)]
        start = START_WEIGHT * config.start_steps * len(config.tasks) / config.seeds
        return Plan(prepare=Step(name="backbone", ticks=len(config.tasks), weight=start), variants=tuple(steps))

    def prepare(self, config: ReeflConfig, seed: int, tick: Tick) -> Mapping[str, Tensor]:
        """The backbone of each task, as `task/parameter`, the same for every seed; none where it is random."""
        if seed == config.seed:
            _start.cache_clear()  # of a run before in this process, whose files may have been others
        found: dict[str, Tensor] = {}
        for task in config.tasks:
            found |= {f"{task}/{name}": value for name, value in _start(task, config).items()}
            tick()
        return found

    def run(self, config: ReeflConfig, variant: str, seed: int, shared: Mapping[str, Tensor], tick: Tick) -> Trial:
        config = config.tuned(variant)
        accuracies: dict[str, list[float]] = {}
        tensors: dict[str, Tensor] = {}
        notes: dict[str, dict[str, int]] = {}
        specs: dict[str, Any] = {}
        for task in config.tasks:
            federation = federate(task, config, seed)
            spec = whole_spec(task, config, federation)
            start = {name.partition("/")[2]: value for name, value in shared.items() if name.startswith(f"{task}/")}
            clients = Clients(
                variant=VARIANTS[variant], spec=spec, config=config, federation=federation, start=start, seed=seed
            )
            server = federated(clients, tick)
            accuracies[task] = clients.accuracies(server.state)
            notes[task] = server.counts()
            if variant == NAME:
                specs[task] = clients.variant.spec(spec, config.exits).to_json()
                tensors |= {f"{task}/{name}": value for name, value in clients.merged(server.state).items()}
        return Trial(metrics=_metrics(accuracies, notes), tensors=tensors, notes={"updates": notes, "specs": specs})

    def judge(self, config: ReeflConfig, table: Mapping[str, Metrics]) -> Verdict:
        """On every data set, against each rival that was run."""
        rivals = {name: table[name] for name in RIVALS if name in table}
        if not rivals:
            return Verdict(claim=CLAIM, holds=False, why=f"neither of {', '.join(RIVALS)} was run")
        found = [judge_above(CLAIM, f"{task}_mean_exit_accuracy", table[NAME], rivals) for task in config.tasks]
        holds = all(verdict.holds for verdict in found)
        return Verdict(claim=CLAIM, holds=holds, why=". ".join(verdict.why for verdict in found))

    def write(self, config: ReeflConfig, trials: Mapping[str, Sequence[Trial]], staging: Staging) -> Mapping[str, str]:
        """One early-exit model for each task, of the first seed; the role without a task's name is the first's."""
        roles = {}
        for task in config.tasks:
            role = "early_exit_model" if task == config.tasks[0] else f"early_exit_model_{task}"
            write_model(staging, role, task, trials[NAME][0])
            roles[role] = role
        return roles


@lru_cache(maxsize=len(SOURCES))
def _start(task: str, config: ReeflConfig) -> Mapping[str, Tensor]:
    """Read, or learned once for all seeds of a run."""
    federation = federate(task, config, config.seed)
    spec = whole_spec(task, config, federation)
    if config.start is not None:
        return read_vit(config.start, spec)
    if federation.start is None or not config.start_steps:
        return {}
    return train_backbone(spec, federation.start, config)


def _metrics(accuracies: Mapping[str, Sequence[float]], notes: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    means = {f"{task}_mean_exit_accuracy": statistics.fmean(found) for task, found in accuracies.items()}
    exits = {
        f"{task}_accuracy_exit_{exit}": value
        for task, found in accuracies.items()
        for exit, value in enumerate(found, 1)
    }
    return {**means, **exits, "rejected_updates": float(sum(counts["rejected"] for counts in notes.values()))}


METHOD = Reefl()
