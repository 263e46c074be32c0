"""`Tuning`: one variant on one seed: clients fine-tune and are scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from mobileicsa.methods.base import Tick, Trial
from mobileicsa.methods.fedp2eft import adalora
from mobileicsa.methods.fedp2eft.budget import parameters
from mobileicsa.methods.fedp2eft.client import Allocation, as_peft, draw_factors, fine_tune, seed_for
from mobileicsa.methods.fedp2eft.config import Config
from mobileicsa.methods.fedp2eft.generator import from_state
from mobileicsa.methods.fedp2eft.strategies import ADALORA, CLAIMED, METHOD, STRATEGIES, Setting
from mobileicsa.methods.fedp2eft.world import Client, World

# Variants that are scored at the other budgets and on text of other languages too.
WIDELY_SCORED = (METHOD, "uniform")


class Tuning:
    """`state`: the generator's; `tick` is called after every fine-tune, `fine_tunes` times in all."""

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
        metrics, by_client, chosen = {}, {}, {}
        for pool, budget in scored:
            first = (pool, budget) == scored[0]
            keep = first and self.variant == METHOD
            scores = {client.name: self._mean_score(client, budget, keep=keep) for client in self.world.pool(pool)}
            name = metric_name(pool, budget)
            metrics[name], by_client[name] = float(np.mean(list(scores.values()))), scores
            factor, rate = self.config.fine_tuning(self.variant, budget)
            chosen[f"rank_{budget}"] = {"factor": factor, "rate": rate}
            if first:
                metrics["parameters"] = float(np.mean(self.parameters))
        if self.variant == METHOD:
            metrics["untuned_loss"] = float(np.mean([self.world.score(c.scored) for c in self.world.pool("unseen")]))
        return Trial(metrics=metrics, tensors=self.tensors, notes={"chosen": chosen, "clients": by_client})

    def _mean_score(self, client: Client, budget: int, *, keep: bool) -> float:
        """Over `repeats` fine-tunes with other batches, the same ones for every variant; `keep` the first's adapter."""
        losses = []
        for repeat in range(self.config.repeats):
            losses.append(self._score(client, budget, repeat, keep=keep and repeat == 0))
            self.tick()
        return float(np.mean(losses))

    def _score(self, client: Client, budget: int, repeat: int, *, keep: bool) -> float:
        seed = seed_for(client.name, self.seed, repeat)
        factor, rate = self.config.fine_tuning(self.variant, budget)
        if self.variant == ADALORA:
            tail, count = adalora.tune(
                self.world, client, self.factors, self.config, budget, factor=factor, rate=rate, seed=seed
            )
            self.parameters.append(count)
            return self.world.score(client.scored, tail)
        allocation = self._allocation(client, budget, factor)
        self.parameters.append(parameters(allocation.mask, self.world.costs))
        adapters = fine_tune(self.world, client, self.factors, allocation, self.config, rate, seed)
        if keep and any(adapters):
            for name, update in as_peft(self.world, adapters).updates.items():
                self.tensors |= {
                    f"adapter:{client.name}:{name}:a": update.down,
                    f"adapter:{client.name}:{name}:b": update.up,
                }
        with self.world.adapted(adapters):
            return self.world.score(client.scored)

    def _allocation(self, client: Client, budget: int, factor: float) -> Allocation:
        """Made once a client and budget: batches of the fine-tune do not change where ranks are."""
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
                seed=seed_for(client.name, self.seed),
            )
            self.allocations[key] = STRATEGIES[self.variant](setting, client)
        return self.allocations[key]


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
    """How many times clients fine-tune in a trial."""
    pools = {"seen": config.languages, "unseen": config.languages, "new": config.new_languages}
    if config.scored == "validation":
        pools = dict.fromkeys(pools, config.languages)
    return config.repeats * sum(len(pools[pool]) for pool, _ in scored_on(config, variant))
