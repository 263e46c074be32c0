"""What happens on a client: learning scales with LoRA (stage 1), and the personal fine-tune under fixed scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mobileicsa.methods.fedp2eft.config import Config
from mobileicsa.methods.fedp2eft.generator import clamp_through
from mobileicsa.methods.fedp2eft.objective import prior
from mobileicsa.methods.fedp2eft.world import Batch, Client, World
from mobileicsa.methods.loop import Diverged, batches, fit
from mobileicsa.methods.lora import Adapter, initial_a
from mobileicsa.methods.peft_vector import PeftVector

# A (rank, in) of every linear, untrained.
Factors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Ranks of a client's adapter: `mask` (modules, rank) bool, fixed `scales` of the same shape, and alpha / r."""

    mask: Tensor
    scales: Tensor
    factor: float


def seed_for(name: str, *numbers: int) -> int:
    """A client's seed, by its name and what else tells its draws apart: the run's seed, a round or a repeat."""
    return int(np.random.default_rng([*numbers, *name.encode()]).integers(2**31))


def training_batches(client: Client, size: int, steps: int, seed: int) -> Iterator[Batch]:
    """Shuffled batches of the training text, epoch after epoch."""
    epochs = -(-steps * size // client.examples) + 1
    indices = batches(client.examples, size, seed, epochs=epochs)
    return (client.train.take(next(indices)) for _ in range(steps))


def draw_factors(world: World, rank: int, seed: int) -> Factors:
    """A (rank, in) of every linear; one draw for a whole federation.

    All clients, rounds and variants start from it, so that a rank is a direction of its module's input: what is learned
    of it in a round on one client says something of the next round, and of another client.
    """
    draw = torch.Generator().manual_seed(seed)
    return tuple(initial_a(rank, inputs, draw) for _, inputs in world.shapes)


def learn_scales(
    world: World, client: Client, factors: Factors, start: Tensor, config: Config, steps: int, seed: int
) -> Tensor:
    """Stage 1: LoRA of full rank and its scales (modules, rank), which start at `start`, learned together.

    The LoRA weights are thrown away; the scales are clamped to their range. `seed` is that of the batches.
    """
    leaf = nn.Parameter(start.detach().clone().to(world.device))
    adapters = [
        Adapter(
            a.clone().to(world.device),
            torch.zeros(outputs, config.rank, device=world.device),
            torch.ones(config.rank, device=world.device),
            config.factor,
        )
        for (outputs, _), a in zip(world.shapes, factors, strict=True)
    ]
    weights = [parameter for adapter in adapters for parameter in (adapter.a, adapter.b)]
    groups = [
        {"params": weights, "lr": config.local_rate},
        {"params": [leaf], "lr": config.scale_rate, "eps": config.scale_epsilon},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    # Not `loop.fit`: at the scales' floor the first steps make the prior a million times larger, and it comes back.
    with world.adapted(adapters):
        for batch in training_batches(client, config.batch, steps, seed):
            scales = clamp_through(leaf)
            for adapter, row in zip(adapters, scales, strict=True):
                adapter.scales = row
            believed = prior(
                [adapter.b for adapter in adapters],
                scales,
                client.examples,
                significance_weight=config.significance,
                sparsity_weight=config.sparsity,
            )
            loss = world.loss(batch) + believed
            if not torch.isfinite(loss):
                raise Diverged(f"{client.name}: learning scales diverged", hint="lower local_rate or scale_rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return clamp_through(leaf).detach().cpu()


def fine_tune(
    world: World, client: Client, factors: Factors, allocation: Allocation, config: Config, rate: float, seed: int
) -> list[Adapter | None]:
    """An adapter a linear (None where no rank is kept), trained for `config.steps` with fixed scales."""
    adapters = start_adapters(world, factors, allocation)
    weights = [parameter for adapter in adapters if adapter is not None for parameter in (adapter.a, adapter.b)]
    if weights and config.steps:
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        with world.adapted(adapters):
            fit(weights, optimizer, training_batches(client, config.batch, config.steps, seed), world.loss)
    return adapters


def start_adapters(world: World, factors: Factors, allocation: Allocation) -> list[Adapter | None]:
    """Untrained adapters; a kept rank has the same row of A whatever else is kept."""
    adapters: list[Adapter | None] = []
    places = zip(world.shapes, factors, allocation.mask, allocation.scales, strict=True)
    for (outputs, _), a, mask, scales in places:
        kept = int(mask.sum())
        adapter = Adapter(a[mask], torch.zeros(outputs, kept), scales[mask].clone(), allocation.factor)
        adapters.append(adapter.to(world.device) if kept else None)
    return adapters


def as_peft(world: World, adapters: Sequence[Adapter | None]) -> PeftVector:
    """The adapter for the whole base; InputError where no module has any."""
    updates = {name: a.update() for name, a in zip(world.names, adapters, strict=True) if a is not None}
    return PeftVector(updates=updates, base=world.base_name, base_identity=world.base_identity)
