"""The federation: clients learn scales, teach them to the generator, and send only the generator back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mobileicsa.methods.federated import Server, simulate
from mobileicsa.methods.fedp2eft.client import draw_factors, learn_scales, seed_for
from mobileicsa.methods.fedp2eft.config import Config
from mobileicsa.methods.fedp2eft.generator import Generator, follow, from_state, standardise
from mobileicsa.methods.fedp2eft.strategies import generated
from mobileicsa.methods.fedp2eft.world import World
from mobileicsa.methods.updates import Arrays, Guard, Update

# The generator starts at next to nothing, so that its first sound step is many thousand times its own size.
MAX_STEP_RATIO = 1e7


def federate(
    world: World, config: Config, seed: int, tick: Callable[[], None]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Rounds over the seen clients; the generator's state afterwards, and how many updates were taken and dropped."""
    factors = draw_factors(world, config.rank, seed)
    clients = {client.name: client for client in world.pool("seen")}
    draw = torch.Generator().manual_seed(seed)
    inputs = next(iter(clients.values())).features.numel()
    generator = Generator(inputs, len(world.names), config.rank, config.start_scale, draw)
    standardise(generator, [client.features.cpu() for client in clients.values()])
    server = Server(
        state=_arrays(generator),
        guard=Guard(
            examples={name: client.examples for name, client in clients.items()}, max_step_ratio=MAX_STEP_RATIO
        ),
    )

    def fit(name: str, round: int, state: Arrays) -> Update:
        client, local = clients[name], from_state(_tensors(state), config.rank)
        # Other batches every round.
        local_seed = seed_for(name, seed, round)
        start = generated(local, client)
        wanted = learn_scales(world, client, factors, start, config, config.local_steps, local_seed)
        follow(local, client.features.cpu(), wanted, rate=config.generator_rate, steps=config.generator_steps)
        return Update(client=name, round=round, examples=client.examples, arrays=_arrays(local))

    simulate(server, list(clients), fit, rounds=config.rounds, per_round=config.per_round, seed=seed, tick=tick)
    return _tensors(server.state), server.counts()


def _arrays(generator: Generator) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in generator.state_dict().items()}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
