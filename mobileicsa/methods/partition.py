"""Which client holds which examples: by Dirichlet draws over labels, by label, or by speaker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def dirichlet(labels: NDArray[np.int64], clients: int, alpha: float, seed: int, *, least: int = 1) -> list[Indices]:
    """For each class, shares over clients from Dirichlet(alpha); small alpha, few classes a client.

    Clients left with fewer than `least` examples take some from the largest.
    """
    if clients < 1 or alpha <= 0 or clients * least > len(labels):
        raise ValueError(f"{clients} clients of at least {least} from {len(labels)} examples at alpha {alpha}")
    draw = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(draw.dirichlet(np.full(clients, alpha)))[:-1] * len(members)).round().astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.extend(piece.tolist())
    for part in parts:
        while len(part) < least:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.array(part, np.int64)) for part in parts]


def by_label(labels: NDArray[np.int64], clients: int, per_client: int, seed: int) -> list[Indices]:
    """Each client holds `per_client` classes, all as often as can be; a class is cut evenly among its holders."""
    classes = np.unique(labels)
    if clients < 1 or not 1 <= per_client <= len(classes) or clients * per_client < len(classes):
        raise ValueError(f"{clients} clients of {per_client} classes cannot hold all {len(classes)}, or hold too many")
    draw = np.random.default_rng(seed)
    deck = np.concatenate([draw.permutation(classes)] * (clients * per_client // len(classes) + 1))
    held = [deck[start : start + per_client] for start in range(0, clients * per_client, per_client)]
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in classes:
        holders = [client for client in range(clients) if label in held[client]]
        pieces = np.array_split(draw.permutation(np.flatnonzero(labels == label)), len(holders))
        for client, piece in zip(holders, pieces, strict=True):
            parts[client].extend(piece.tolist())
    return [np.sort(np.array(part, np.int64)) for part in parts]


def by_group(groups: Sequence[str]) -> dict[str, Indices]:
    """One client for each group, a speaker or a language, in order of names."""
    names = np.array(groups)
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


def split(parts: Indices, held_out: float, seed: int) -> tuple[Indices, Indices]:
    """A client's own training and validation examples."""
    order = np.random.default_rng(seed).permutation(parts)
    count = round(held_out * len(order))
    return np.sort(order[count:]), np.sort(order[:count])
