"""The method as `mobileicsa methods run` sees it: steps, scores, verdict, adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.hashing import sha256_parts
from mobileicsa.io.staging import Staging
from mobileicsa.methods.base import Plan, Step, Tick, Trial
from mobileicsa.methods.fedp2eft import adalora
from mobileicsa.methods.fedp2eft.budget import parameters
from mobileicsa.methods.fedp2eft.client import Allocation, as_peft, fine_tune
from mobileicsa.methods.fedp2eft.config import SIZES, Config
from mobileicsa.methods.fedp2eft.federation import federate
from mobileicsa.methods.fedp2eft.generator import from_state
from mobileicsa.methods.fedp2eft.strategies import (
    ADALORA,
    BASELINES,
    CONTROLS,
    METHOD,
    STRATEGIES,
    VARIANTS,
    Setting,
)
from mobileicsa.methods.fedp2eft.texts import PUD, XCOPA, pud_file, xcopa_files
from mobileicsa.methods.fedp2eft.world import Client, World, device_named
from mobileicsa.methods.loop import Diverged
from mobileicsa.methods.peft_vector import LoraPair, PeftVector
from mobileicsa.methods.result import Metrics, Verdict, judge_above, paired
from mobileicsa.methods.tasks import data_files, digest

# Variants that are scored on every pool and budget; the others where the claim is made only.
WIDELY_SCORED = (METHOD, "uniform_tuned")
GENERATOR, ADAPTERS = "psg.safetensors", "adapters"


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
        variants = []
        for name in VARIANTS:
            scored = list(_scored(config, name))
            tuned = len({budget for _, budget in scored}) * min(config.tuning_clients, len(config.languages))
            ticks = tuned * len(_choices(config, name)) + sum(len(_members(config, pool)) for pool, _ in scored)
            variants.append(Step(name=name, ticks=ticks))
        # A client's cache, and a round of the federation, take about as long as fine-tuning so many clients.
        prepare = Step(name="federation", ticks=len(config.clients) + config.rounds)
        return Plan(variants=tuple(variants), prepare=prepare)

    def prepare(self, config: Config, seed: int, tick: Tick) -> Mapping[str, Tensor]:
        return federate(self._world_of(config, tick), config, seed, tick)

    def run(self, config: Config, variant: str, seed: int, shared: Mapping[str, Tensor], tick: Tick) -> Trial:
        return _Tuning(self._world_of(config), config, variant, seed, shared, tick).trial()

    def judge(self, config: Config, table: Mapping[str, Metrics]) -> Verdict:
        metric = _metric("unseen", config.budgets[0])
        claim = (
            f"unseen clients' test loss at the parameters of uniform rank {config.budgets[0]} is below that of"
            f" {', '.join(BASELINES)}"
        )
        verdict = judge_above(claim, metric, table[METHOD], {name: table[name] for name in BASELINES}, lower=True)
        controls = [f"{name} {paired(table[METHOD][metric], table[name][metric]).mean:+.4f}" for name in CONTROLS]
        why = f"{verdict.why}; against the controls for scales that act as a learning rate: {', '.join(controls)}"
        return Verdict(claim=claim, holds=verdict.holds, why=why)

    def write(self, config: Config, trials: Mapping[str, Sequence[Trial]], staging: Staging) -> Mapping[str, str]:
        tensors = trials[METHOD][0].tensors
        staging.write_tensors(GENERATOR, {k[4:]: v for k, v in tensors.items() if k.startswith("psg:")})
        identity = open_checkpoint(config.base).identity
        folders = []
        for language in config.languages:
            prefix = f"adapter:unseen-{language}:"
            found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if found:
                modules = {key.rpartition(":")[0] for key in found}
                pairs = {name: LoraPair(a=found[f"{name}:a"], b=found[f"{name}:b"]) for name in modules}
                folders.append(f"{ADAPTERS}/unseen-{language}")
                PeftVector(pairs=pairs, base=config.base, base_identity=identity).save(staging.path(folders[-1]))
        return {"adapter": folders[0], "adapters": ADAPTERS, "psg": GENERATOR}

    def _world_of(self, config: Config, tick: Tick = lambda: None) -> World:
        if self._world is None or self._world[0] != config:
            self._world = (config, World(config, _files(config), tick))
        else:
            for _ in config.clients:
                tick()
        return self._world[1]


class _Tuning:
    """One variant on one seed: choose its learning rate, then fine-tune and score the clients."""

    def __init__(
        self, world: World, config: Config, variant: str, seed: int, shared: Mapping[str, Tensor], tick: Tick
    ) -> None:
        self.world, self.config, self.variant, self.seed, self.tick = world, config, variant, seed, tick
        self.shared, self.generator = shared, from_state(shared, config.rank)
        self.tensors: dict[str, Tensor] = {}
        self.parameters: list[int] = []
        self.allocations: dict[tuple[str, int], Allocation] = {}

    def trial(self) -> Trial:
        budgets = dict.fromkeys(budget for _, budget in _scored(self.config, self.variant))
        chosen = {budget: self._choose(budget) for budget in budgets}
        metrics, by_client = {}, {}
        for pool, budget in _scored(self.config, self.variant):
            keep = self.variant == METHOD and (pool, budget) == ("unseen", self.config.budgets[0])
            scores = {c.name: self._score(c, budget, *chosen[budget], keep=keep) for c in self.world.pool(pool)}
            name = _metric(pool, budget)
            metrics[name], by_client[name] = float(np.mean(list(scores.values()))), scores
            if (pool, budget) == ("unseen", self.config.budgets[0]):
                metrics["parameters"] = float(np.mean(self.parameters))
        if self.variant == METHOD:
            metrics |= {"untuned_loss": float(np.mean([self.world.score(c.test) for c in self.world.pool("unseen")]))}
            self.tensors |= {f"psg:{name}": tensor for name, tensor in self.shared.items()}
        settings = {f"rank_{budget}": {"rate": rate, "factor": factor} for budget, (rate, factor) in chosen.items()}
        return Trial(metrics=metrics, tensors=self.tensors, notes={"chosen": settings, "clients": by_client})

    def _choose(self, budget: int) -> tuple[float, float]:
        """The (rate, alpha / r) of the lowest validation loss over a few seen clients, at this budget."""
        clients = self.world.pool("seen")[: self.config.tuning_clients]
        choices = _choices(self.config, self.variant)

        def loss(choice: tuple[float, float]) -> float:
            try:
                mean = float(np.mean([self._score(client, budget, *choice, test=False) for client in clients]))
            except Diverged:
                return math.inf
            return mean if math.isfinite(mean) else math.inf

        return min(choices, key=loss)

    def _score(
        self, client: Client, budget: int, rate: float, factor: float, *, test: bool = True, keep: bool = False
    ) -> float:
        seed = int(np.random.default_rng([self.seed, *client.name.encode()]).integers(2**31))
        part = client.test if test else client.validation
        if self.variant == ADALORA:
            tail, count = adalora.tune(self.world, client, self.config, budget, rate, seed)
            loss = self.world.score(part, tail)
        else:
            setting = Setting(
                world=self.world,
                config=self.config,
                generator=self.generator,
                budget=budget,
                factor=factor,
                seed=seed,
            )
            allocation = self._allocation(setting, client)
            adapters = fine_tune(self.world, client, allocation, self.config, rate, seed)
            with self.world.adapted(adapters):
                loss = self.world.score(part)
            count = parameters(allocation.mask, self.world.costs)
            if keep and any(adapters):
                for name, pair in as_peft(self.world, adapters).pairs.items():
                    self.tensors |= {
                        f"adapter:{client.name}:{name}:a": pair.a,
                        f"adapter:{client.name}:{name}:b": pair.b,
                    }
        if test:
            self.parameters.append(count)
        self.tick()
        return loss

    def _allocation(self, setting: Setting, client: Client) -> Allocation:
        """Made once a client and budget: no learning rate or factor of the fine-tune changes where ranks are."""
        key = client.name, setting.budget
        if key not in self.allocations:
            self.allocations[key] = STRATEGIES[self.variant](setting, client)
        return replace(self.allocations[key], factor=setting.factor)


def _choices(config: Config, variant: str) -> list[tuple[float, float]]:
    factors = config.factors if variant == "uniform_tuned" else (config.factor,)
    return [(rate, factor) for factor in factors for rate in config.rates]


def _scored(config: Config, variant: str) -> Iterator[tuple[str, int]]:
    """Pool and budget of every metric of a variant."""
    first, *others = config.budgets
    yield "unseen", first
    if variant in WIDELY_SCORED:
        yield "seen", first
        if config.new_languages:
            yield "new", first
        yield from (("unseen", budget) for budget in others)


def _metric(pool: str, budget: int) -> str:
    """The other pools are scored at the first budget only."""
    return f"loss_rank_{budget}" if pool == "unseen" else f"loss_{pool}"


def _members(config: Config, pool: str) -> list[str]:
    return [client for client in config.clients if client.startswith(f"{pool}:")]


def _files(config: Config) -> dict[str, list[Path]]:
    """pool:language to the files of its text."""
    files = {}
    for client in config.clients:
        pool, _, language = client.partition(":")
        folder, names = (XCOPA, xcopa_files(language)) if pool == "new" else (PUD, (pud_file(language),))
        files[client] = list(data_files(config.data, folder, names).values())
    return files
