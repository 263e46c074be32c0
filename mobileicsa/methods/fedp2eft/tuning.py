"""`Tuning`: one variant on one seed: its learning rates are chosen, then clients fine-tune and are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from mobileicsa.methods.base import Tick, Trial
from mobileicsa.methods.fedp2eft import adalora
from mobileicsa.methods.fedp2eft.budget import parameters
from mobileicsa.methods.fedp2eft.client import Allocation, as_peft, draw_factors, fine_tune
from mobileicsa.methods.fedp2eft.config import Config
from mobileicsa.methods.fedp2eft.generator import from_state
from mobileicsa.methods.fedp2eft.strategies import ADALORA, CLAIMED, METHOD, STRATEGIES, TUNED, Setting
from mobileicsa.methods.fedp2eft.world import Client, World
from mobileicsa.methods.loop import Diverged

# Variants that are scored at the other budgets and on text of other languages too.
WIDELY_SCORED = (METHOD, "uniform")
# Learning rates that a climb tries: the first one, and most often two more.
USUAL_CLIMB = 3


class Tuning:
    """`state`: the generator's; `tick` is called after every fine-tune, some `fine_tunes` times in all."""

    def __init__(
        self, world: World, config: Config, variant: str, seed: int, state: Mapping[str, Tensor], tick: Tick
    ) -> None:
        self.world, self.config, self.variant, self.seed, self.tick = world, config, variant, seed, tick
        self.generator = from_state(state, config.rank)
        self.factors = draw_factors(world, config.rank, seed)
        self.tensors: dict[str, Tensor] = {}
        self.parameters: list[int] = []
        self.alone: dict[str, Tensor] = {}
        self.allocations: dict[tuple[str, int], Allocation] = {}

    def trial(self) -> Trial:
        scored = list(scored_on(self.config, self.variant))
        chosen = {budget: self._choose(budget) for budget in dict.fromkeys(budget for _, budget in scored)}
        metrics, by_client = {}, {}
        for pool, budget in scored:
            first = (pool, budget) == scored[0]
            keep = first and self.variant == METHOD
            scores = {c.name: self._score(c, budget, *chosen[budget], keep=keep) for c in self.world.pool(pool)}
            name = metric_name(pool, budget)
            metrics[name], by_client[name] = float(np.mean(list(scores.values()))), scores
            if first:
                metrics["parameters"] = float(np.mean(self.parameters))
        if self.variant == METHOD:
            metrics["untuned_loss"] = float(np.mean([self.world.score(c.test) for c in self.world.pool("unseen")]))
        settings = {f"rank_{budget}": {"rate": rate, "factor": factor} for budget, (rate, factor) in chosen.items()}
        return Trial(metrics=metrics, tensors=self.tensors, notes={"chosen": settings, "clients": by_client})

    def _choose(self, budget: int) -> tuple[float, float]:
        """The (rate, alpha / r) of the lowest validation loss over a few seen clients, at this budget."""
        config, seen = self.config, self.world.pool("seen")
        # From all over the list, for languages stand in it by their names.
        clients = seen[:: max(1, len(seen) // config.tuning_clients)][: config.tuning_clients]

        def loss(rate: float, factor: float) -> float:
            try:
                mean = float(np.mean([self._score(client, budget, rate, factor, test=False) for client in clients]))
            except Diverged:
                return math.inf
            return mean if math.isfinite(mean) else math.inf

        losses: dict[tuple[float, float], float] = {}

        def try_once(rate: float, factor: float) -> float:
            if (rate, factor) not in losses:
                losses[rate, factor] = loss(rate, factor)
            return losses[rate, factor]

        best = config.rates[climb(len(config.rates), lambda index: try_once(config.rates[index], config.factor))]
        for factor in (config.factor, *_other_factors(config, self.variant)):
            try_once(best * config.factor / factor, factor)
        return min(losses, key=losses.__getitem__)

    def _score(
        self, client: Client, budget: int, rate: float, factor: float, *, test: bool = True, keep: bool = False
    ) -> float:
        seed = int(np.random.default_rng([self.seed, *client.name.encode()]).integers(2**31))
        part = client.test if test else client.validation
        if self.variant == ADALORA:
            tail, count = adalora.tune(self.world, client, self.config, budget, rate, seed)
            loss = self.world.score(part, tail)
        else:
            allocation = self._allocation(client, budget, factor, seed)
            adapters = fine_tune(self.world, client, self.factors, allocation, self.config, rate, seed)
            with self.world.adapted(adapters):
                loss = self.world.score(part)
            count = parameters(allocation.mask, self.world.costs)
            if keep and any(adapters):
                for name, update in as_peft(self.world, adapters).updates.items():
                    self.tensors |= {
                        f"adapter:{client.name}:{name}:a": update.down,
                        f"adapter:{client.name}:{name}:b": update.up,
                    }
        if test:
            self.parameters.append(count)
        self.tick()
        return loss

    def _allocation(self, client: Client, budget: int, factor: float, seed: int) -> Allocation:
        """Made once a client and budget: no learning rate or factor of the fine-tune changes where ranks are."""
        key = client.name, budget
        if key not in self.allocations:
            setting = Setting(
                world=self.world,
                config=self.config,
                generator=self.generator,
                factors=self.factors,
                alone=self.alone,
                budget=budget,
                factor=factor,
                seed=seed,
            )
            self.allocations[key] = STRATEGIES[self.variant](setting, client)
        return replace(self.allocations[key], factor=factor)


def climb(count: int, loss: Callable[[int], float]) -> int:
    """Index of the loss from which no step of one leads lower, sought from the middle of `count`; larger ones first."""
    best = count // 2
    for step in (1, -1):
        while 0 <= best + step < count and loss(best + step) < loss(best):
            best += step
    return best


def claimed(config: Config) -> Iterator[tuple[str, int]]:
    """Pool and budget of every metric of the claim, the first one first."""
    first, *others = config.budgets
    yield "unseen", first
    yield "seen", first
    yield from (("unseen", budget) for budget in others)


def scored_on(config: Config, variant: str) -> Iterator[tuple[str, int]]:
    """Pool and budget of every metric of a variant."""
    if variant in WIDELY_SCORED:
        yield from claimed(config)
        if config.new_languages:
            yield "new", config.budgets[0]
    else:
        pools = ("unseen", "seen") if variant in CLAIMED else ("unseen",)
        yield from ((pool, config.budgets[0]) for pool in pools)


def metric_name(pool: str, budget: int) -> str:
    """The other pools are scored at the first budget only."""
    return f"loss_rank_{budget}" if pool == "unseen" else f"loss_{pool}"


def fine_tunes(config: Config, variant: str) -> int:
    """How many clients fine-tune in a trial, about: how far a climb goes is not known beforehand."""
    scored = list(scored_on(config, variant))
    choices = min(len(config.rates), USUAL_CLIMB) + len(_other_factors(config, variant))
    tuned = len({budget for _, budget in scored}) * choices * min(config.tuning_clients, len(config.languages))
    return tuned + sum(client.partition(":")[0] == pool for pool, _ in scored for client in config.clients)


def _other_factors(config: Config, variant: str) -> tuple[float, ...]:
    """alpha / r to try at the chosen rate."""
    return tuple(factor for factor in config.factors if factor != config.factor) if variant == TUNED else ()
