"""The method as `mobileicsa methods run` sees it: steps, scores, verdict, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.hashing import sha256_parts
from mobileicsa.io.staging import Staging
from mobileicsa.methods.base import Plan, Step, Tick, Trial
from mobileicsa.methods.fedp2eft import adalora
from mobileicsa.methods.fedp2eft.config import SIZES, Config
from mobileicsa.methods.fedp2eft.federation import federate
from mobileicsa.methods.fedp2eft.strategies import BASELINES, CONTROLS, METHOD
from mobileicsa.methods.fedp2eft.texts import PUD, XCOPA, pud_file, xcopa_files
from mobileicsa.methods.fedp2eft.tuning import Tuning, claimed, fine_tunes, metric_name
from mobileicsa.methods.fedp2eft.world import World, device_named
from mobileicsa.methods.peft_vector import PeftVector
from mobileicsa.methods.result import Metrics, Verdict, judge_above, paired
from mobileicsa.methods.tasks import data_files, digest
from mobileicsa.models.adapter import LowRank

GENERATOR, ADAPTERS = "psg.safetensors", "adapters"
# Prefixes of names of what a seed's variants share.
STATE, UPDATES = "psg:", "updates:"


class FedP2EFT:
    name = METHOD
    sizes: Mapping[str, Config] = SIZES

    def __init__(self) -> None:
        self._world: tuple[Config, World] | None = None

    def check(self, config: Config) -> str:
        adalora.check_available()
        device_named(config.device)
        paths = {str(index): path for index, path in enumerate(p for group in _files(config).values() for p in group)}
        return sha256_parts([("base", open_checkpoint(config.base).identity), ("data", digest(paths))])

    def plan(self, config: Config) -> Plan:
        names = (METHOD, *BASELINES, *CONTROLS[config.keep_scales])
        variants = [Step(name=name, ticks=fine_tunes(config, name)) for name in names]
        # A client's cache, and a round of the federation, take about as long as fine-tuning so many clients.
        prepare = Step(name="federation", ticks=len(config.clients) + config.rounds)
        return Plan(variants=tuple(variants), prepare=prepare)

    def prepare(self, config: Config, seed: int, tick: Tick) -> Mapping[str, Tensor]:
        """The generator under `psg:`, and under `updates:` how many updates the server accepted and dropped."""
        generator, counts = federate(self._world_of(config, tick), config, seed, tick)
        counted = {f"{UPDATES}{name}": torch.tensor(count) for name, count in counts.items()}
        return counted | {f"{STATE}{name}": tensor for name, tensor in generator.items()}

    def run(self, config: Config, variant: str, seed: int, shared: Mapping[str, Tensor], tick: Tick) -> Trial:
        generator = {name.removeprefix(STATE): t for name, t in shared.items() if name.startswith(STATE)}
        found = Tuning(self._world_of(config), config, variant, seed, generator, tick).trial()
        if variant != METHOD:
            return found
        counts = {name.removeprefix(UPDATES): int(t) for name, t in shared.items() if name.startswith(UPDATES)}
        kept = {f"{STATE}{name}": tensor for name, tensor in generator.items()}
        return Trial(
            metrics={**found.metrics, "rejected_updates": float(counts["rejected"])},
            tensors={**found.tensors, **kept},
            notes={**found.notes, "updates": counts},
        )

    def judge(self, config: Config, table: Mapping[str, Metrics]) -> Verdict:
        """Against every baseline that has the metric, on each of the claim's pools and budgets."""
        first, *others = config.budgets
        claim = (
            f"{config.scored} loss at the parameters of uniform rank {first} is below that of {', '.join(BASELINES)} on"
            " unseen and on seen clients"
        )
        if others:
            claim += f"; below that of uniform on unseen clients at rank {', '.join(map(str, others))}"
        judged = []
        for pool, budget in claimed(config):
            metric = metric_name(pool, budget)
            rivals = {name: table[name] for name in BASELINES if metric in table[name]}
            judged.append(judge_above(claim, metric, table[METHOD], rivals, lower=True))
        metric = metric_name("unseen", first)
        controls = [
            f"{name} {paired(table[METHOD][metric], table[name][metric]).mean:+.4f}"
            for name in CONTROLS[config.keep_scales]
        ]
        why = ". ".join(verdict.why for verdict in judged)
        why = f"{why}. Against the controls for what scales do as learning rates: {', '.join(controls)}"
        return Verdict(claim=claim, holds=all(verdict.holds for verdict in judged), why=why)

    def write(self, config: Config, trials: Mapping[str, Sequence[Trial]], staging: Staging) -> Mapping[str, str]:
        tensors = trials[METHOD][0].tensors
        staging.write_tensors(GENERATOR, {k.removeprefix(STATE): v for k, v in tensors.items() if k.startswith(STATE)})
        identity = open_checkpoint(config.base).identity
        folders = []
        for client in dict.fromkeys(key.split(":")[1] for key in tensors if key.startswith("adapter:")):
            prefix = f"adapter:{client}:"
            found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            modules = {key.rpartition(":")[0] for key in found}
            updates = {name: LowRank(found[f"{name}:a"], found[f"{name}:b"]) for name in modules}
            folders.append(f"{ADAPTERS}/{client}")
            PeftVector(updates=updates, base=config.base, base_identity=identity).save(staging.path(folders[-1]))
        return {"adapter": folders[0], "adapters": ADAPTERS, "psg": GENERATOR}

    def _world_of(self, config: Config, tick: Tick = lambda: None) -> World:
        if self._world is None or self._world[0] != config:
            self._world = (config, World(config, _files(config), tick))
        else:
            for _ in config.clients:
                tick()
        return self._world[1]


def _files(config: Config) -> dict[str, list[Path]]:
    """pool:language to the files of its text."""
    files = {}
    for client in config.clients:
        pool, _, language = client.partition(":")
        folder, names = (XCOPA, xcopa_files(language)) if pool == "new" else (PUD, (pud_file(language),))
        files[client] = list(data_files(config.data, folder, names).values())
    return files
