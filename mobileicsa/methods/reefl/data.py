"""The data of a run: what the backbone starts from, what each client holds, what is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileicsa.core.errors import InputError
from mobileicsa.methods import cifar10, cifar100, fsdd, speech_commands
from mobileicsa.methods.partition import by_group, dirichlet, split
from mobileicsa.methods.reefl.config import ReeflConfig
from mobileicsa.methods.tasks import Examples, Split

# The start stands in for one published checkpoint, as the paper's DeiT-S: its examples are the same for every seed.
START_SEED = 0
# A client's training batch needs some.
LEAST_EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """`patch` suits the inputs' own size."""

    identity: Callable[[Path | None], str]
    load: Callable[[Path | None, int | None], Split]
    patch: int


SOURCES: dict[str, Source] = {
    "cifar10": Source(identity=cifar10.identity, load=cifar10.load, patch=4),
    "fsdd": Source(identity=fsdd.identity, load=fsdd.load, patch=8),
    "cifar100": Source(identity=cifar100.identity, load=cifar100.load, patch=4),
    "speech_commands": Source(identity=speech_commands.identity, load=speech_commands.load, patch=8),
}


@dataclass(frozen=True, kw_only=True)
class Federation:
    """`start`: for the backbone, None where it starts elsewhere; `scored`: never trained on."""

    start: Examples | None
    clients: dict[str, Examples]
    scored: Examples
    classes: int


def federate(task: str, config: ReeflConfig, seed: int) -> Federation:
    """The start's part, the same for every seed, and clients cut from the rest by `seed`.

    By speaker where speakers are known, else by Dirichlet draws over labels.
    """
    data = SOURCES[task].load(config.data, config.per_class)
    train, test = data.train, data.test
    if train.groups:
        start, rest = _by_speaker(train, config, seed)
        # Speakers that the backbone started from are not among the clients, nor scored.
        known = {train.groups[index] for index in start}
        test = test.take([index for index, speaker in enumerate(test.groups) if speaker not in known])
    else:
        start, rest = _by_label(train, config, seed)
    clients, held_out = {}, []
    for number, part in enumerate(rest):
        own, kept = split(part, config.held_out, seed)
        clients[f"client-{number}"] = train.take(own)
        held_out.append(kept)
    scored = test if config.scored == "test" else train.take(np.concatenate(held_out))
    if not len(scored):
        raise InputError(f"task {task}: nothing is left to score on {config.scored}", hint="give held_out more")
    return Federation(
        start=train.take(start) if len(start) else None, clients=clients, scored=scored, classes=data.classes
    )


def _by_label(train: Examples, config: ReeflConfig, seed: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    order = np.random.default_rng(START_SEED).permutation(len(train))
    count = round(config.start_share * len(train))
    rest = np.sort(order[count:])
    _check_amount(len(rest), config)
    parts = dirichlet(train.labels.numpy()[rest], config.clients, config.alpha, seed, least=LEAST_EXAMPLES)
    return np.sort(order[:count]), [rest[part] for part in parts]


def _by_speaker(train: Examples, config: ReeflConfig, seed: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Whole speakers for the start, the first by name.

    The others' clips are cut up, or several speakers go to a client where they are many.
    """
    speakers = by_group(train.groups)
    names = sorted(speakers)
    count = min(round(config.start_share * len(names)), len(names) - 1)
    start = [speakers[name] for name in names[:count]]
    draw = np.random.default_rng(seed)
    rest = [str(name) for name in draw.permutation(names[count:])]
    _check_amount(sum(len(speakers[name]) for name in rest), config)
    each = [len(part) for part in np.array_split(np.arange(config.clients), len(rest))]
    if min(each) == 0:
        shared = [rest[first :: config.clients] for first in range(config.clients)]
        parts = [np.concatenate([speakers[name] for name in bundle]) for bundle in shared]
    else:
        parts = [
            piece
            for name, pieces in zip(rest, each, strict=True)
            for piece in np.array_split(draw.permutation(speakers[name]), pieces)
        ]
    return np.sort(np.concatenate(start)) if start else np.array([], np.int64), [np.sort(part) for part in parts]


def _check_amount(count: int, config: ReeflConfig) -> None:
    if count < config.clients * LEAST_EXAMPLES:
        raise InputError(
            f"clients={config.clients}: {count} training examples are fewer than {LEAST_EXAMPLES} each",
            hint="name fewer clients, or a smaller start_share",
        )
