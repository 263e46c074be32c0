"""ReeFL's comparison is paired: one start for all seeds, and within a seed the same clients, order and batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mobileicsa.core.errors import InputError
from mobileicsa.methods.loop import batches
from mobileicsa.methods.overrides import configure
from mobileicsa.methods.reefl import rounds
from mobileicsa.methods.reefl.config import SIZES, SMALL, SMOKE, ReeflConfig
from mobileicsa.methods.reefl.data import federate
from mobileicsa.methods.reefl.models import train_backbone, whole_spec
from mobileicsa.methods.reefl.rounds import Clients, federated
from mobileicsa.methods.reefl.variants import VARIANTS, takes_part
from mobileicsa.methods.updates import Arrays, Update

TASK = "fsdd"


@dataclass(kw_only=True)
class Watched(Clients):
    order: list[tuple[int, str]] = field(default_factory=list)

    def fit(self, client: str, round: int, state: Arrays) -> Update:
        self.order.append((round, client))
        return super().fit(client, round, state)


@pytest.fixture
def config(data_dir: Path) -> ReeflConfig:
    return replace(SMOKE, data=data_dir, clients=8, per_round=3)


def watched(
    config: ReeflConfig, variant: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Watched, list[list[int]]]:
    """Run a variant; its clients in order, and every minibatch."""
    federation = federate(TASK, config, seed)
    spec = whole_spec(TASK, config, federation)
    start = train_backbone(spec, federation.start, config) if federation.start is not None else {}
    drawn: list[list[int]] = []

    def recorded(*arguments: Any, **named: Any) -> Iterator[torch.Tensor]:
        for indices in batches(*arguments, **named):
            drawn.append(indices.tolist())
            yield indices

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "batches", recorded)
        clients = Watched(
            variant=VARIANTS[variant], spec=spec, config=config, federation=federation, start=start, seed=seed
        )
        federated(clients, lambda: None)
    return clients, drawn


def test_all_variants_of_a_seed_train_the_same_clients_in_one_order_on_the_same_batches(
    config: ReeflConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, drawn = watched(config, "reefl", 5, monkeypatch)
    assert len(own.order) == config.rounds * config.per_round
    for name in VARIANTS.keys() - {"reefl", "exclusivefl"}:
        other, same = watched(config, name, 5, monkeypatch)
        assert (other.order, same) == (own.order, drawn), name
    narrowed, _ = watched(config, "exclusivefl", 5, monkeypatch)
    assert all(takes_part(int(client.split("-")[1]), VARIANTS["exclusivefl"], config) for _, client in narrowed.order)
    assert watched(config, "reefl", 6, monkeypatch)[1] != drawn


def test_variants_end_on_the_backbone_that_they_started_from(
    config: ReeflConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("reefl", "depthfl", "exclusivefl"):
        clients, _ = watched(config, name, 5, monkeypatch)
        parameters = clients.model(config.exits)[0].state_dict()
        assert clients.start
        assert all(torch.equal(parameters[key], value) for key, value in clients.start.items())


@pytest.mark.parametrize("task", ["cifar10", "fsdd"])
def test_seeds_share_the_start_and_cut_clients_anew(config: ReeflConfig, task: str) -> None:
    one, other = federate(task, config, 0), federate(task, config, 1)
    assert one.start is not None
    assert other.start is not None
    assert torch.equal(one.start.inputs, other.start.inputs)
    assert any(
        a.inputs.shape != b.inputs.shape or not torch.equal(a.inputs, b.inputs)
        for a, b in zip(one.clients.values(), other.clients.values(), strict=True)
    )
    assert torch.equal(one.scored.inputs, other.scored.inputs)
    spec = whole_spec(task, config, one)
    weights = [train_backbone(spec, part.start, config) for part in (one, other) if part.start is not None]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_a_rival_may_have_a_rate_of_its_own_that_falls_alike() -> None:
    config = replace(SMALL, lr=0.002, end_lr=0.0002, rates=(("depthfl", 0.005),))
    assert (config.tuned("depthfl").lr, config.tuned("depthfl").end_lr) == pytest.approx((0.005, 0.0005))
    assert config.tuned("reefl") == config
    assert configure(SIZES, "small", ["rates=[[exclusivefl, 0.02]]"]).tuned("exclusivefl").lr == pytest.approx(0.02)
    with pytest.raises(InputError, match="rates"):
        configure(SIZES, "small", ["rates=[[fedavg, 0.02]]"])
