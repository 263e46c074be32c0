"""How each variant shares out a rank budget on a client: one function a variant, all of one shape.

Scales far from 1 are a learning rate of their own, so that a gain over a plain uniform LoRA need not come from where
the ranks are: the controls tell the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mobileicsa.methods.fedp2eft.budget import keep_largest, parameters, uniform_mask
from mobileicsa.methods.fedp2eft.client import Allocation, Factors, learn_scales
from mobileicsa.methods.fedp2eft.config import Config
from mobileicsa.methods.fedp2eft.generator import Generator
from mobileicsa.methods.fedp2eft.world import Client, World

METHOD, ADALORA = "fedp2eft", "adalora"
# Scored on seen and on unseen clients; the others on unseen ones.
CLAIMED = (METHOD, "uniform", "random", ADALORA, "bayestune")
BASELINES = CLAIMED[1:]
# By whether kept ranks keep their scales. Where all scales are 1 none acts as a learning rate.
CONTROLS: Mapping[bool, tuple[str, ...]] = {True: ("unit_scales", "mean_scale"), False: ("learned_scales",)}
# Stage 1 of a client that learns its scales alone, in steps of one that does so within a round.
ALONE = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a strategy goes by.

    `factor` is alpha / r, `seed` the client's own; `alone` keeps the scales that clients of this seed learned by
    themselves, by name, for they are the same at every budget.
    """

    world: World
    config: Config
    generator: Generator
    factors: Factors
    alone: dict[str, Tensor]
    budget: int
    factor: float
    seed: int


Strategy = Callable[[Setting, Client], Allocation]


def uniform(setting: Setting, client: Client) -> Allocation:
    """Every module the same rank."""
    mask = uniform_mask(len(setting.world.costs), setting.config.rank, setting.budget)
    return Allocation(mask=mask, scales=torch.ones(mask.shape), factor=setting.factor)


def random(setting: Setting, client: Client) -> Allocation:
    """The same number of parameters, ranks drawn at random over all modules."""
    draw = torch.Generator().manual_seed(setting.seed)
    scores = torch.rand(len(setting.world.costs), setting.config.rank, generator=draw)
    return Allocation(mask=_largest(setting, scores), scales=torch.ones(scores.shape), factor=setting.factor)


def bayestune(setting: Setting, client: Client) -> Allocation:
    """Scales learned by this client alone, for `ALONE` times as long as in a round."""
    config, world = setting.config.by_itself(), setting.world
    if client.name not in setting.alone:
        start = torch.full((len(world.costs), config.rank), config.start_scale)
        steps = ALONE * config.local_steps
        setting.alone[client.name] = learn_scales(world, client, setting.factors, start, config, steps, setting.seed)
    scales = setting.alone[client.name]
    return _kept(setting, scales)


def fedp2eft(setting: Setting, client: Client) -> Allocation:
    """The ranks to which the federation's generator gives the largest scales, by the client's statistics."""
    return _kept(setting, generated(setting.generator, client))


def unit_scales(setting: Setting, client: Client) -> Allocation:
    """Our ranks, without our scales."""
    ours = fedp2eft(setting, client)
    return replace(ours, scales=torch.ones(ours.scales.shape))


def learned_scales(setting: Setting, client: Client) -> Allocation:
    """Our ranks, with our scales."""
    return replace(fedp2eft(setting, client), scales=generated(setting.generator, client))


def mean_scale(setting: Setting, client: Client) -> Allocation:
    """Uniform ranks, all with the mean of our kept scales."""
    ours = fedp2eft(setting, client)
    plain = uniform(setting, client)
    mean = float(ours.scales[ours.mask].mean())
    return replace(plain, scales=torch.full(plain.scales.shape, mean))


@torch.no_grad()
def generated(generator: Generator, client: Client) -> Tensor:
    """The generator's scales (modules, rank) for a client."""
    scales: Tensor = generator(client.features.cpu())
    return scales


def _kept(setting: Setting, scales: Tensor) -> Allocation:
    """The largest scales a parameter, for ranks of different modules do not cost the same; as multipliers, or as 1."""
    mask = _largest(setting, scales / setting.world.costs.unsqueeze(1))
    multipliers = scales if setting.config.keep_scales else torch.ones(scales.shape)
    return Allocation(mask=mask, scales=multipliers, factor=setting.factor)


def _largest(setting: Setting, scores: Tensor) -> Tensor:
    costs = setting.world.costs
    whole = uniform_mask(len(costs), setting.config.rank, setting.budget)
    return keep_largest(scores, costs, parameters(whole, costs))


# AdaLoRA shares out ranks while it trains: it is not in this table (see `adalora.py`).
STRATEGIES: Mapping[str, Strategy] = {
    METHOD: fedp2eft,
    "uniform": uniform,
    "random": random,
    "bayestune": bayestune,
    "unit_scales": unit_scales,
    "learned_scales": learned_scales,
    "mean_scale": mean_scale,
}
