"""How a server joins updates: per key, and within a key per element, over those clients that hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mobileicsa.methods.updates import Array, Arrays, Update, corner

Aggregate = Callable[[Arrays, Sequence[Update]], dict[str, Array]]


def weighted_mean(state: Arrays, updates: Sequence[Update]) -> dict[str, Array]:
    """Mean weighted by examples; what nobody holds keeps its old value."""
    joined: dict[str, Array] = {}
    for key, old in state.items():
        total = np.zeros(old.shape, np.float64)
        weight = np.zeros(old.shape, np.float64)
        for update in updates:
            if key in update.arrays:
                array = update.arrays[key]
                corner(total, array.shape)[...] += array.astype(np.float64) * update.examples
                corner(weight, array.shape)[...] += update.examples
        held = weight > 0
        joined[key] = np.where(held, total / np.where(held, weight, 1.0), old).astype(old.dtype)
    return joined


def trimmed_mean(state: Arrays, updates: Sequence[Update], *, share: float = 0.3) -> dict[str, Array]:
    """Mean without the `share` largest and smallest values of each element's holders, unweighted."""
    return {key: _ranked(key, old, updates, partial(_trim, share=share)) for key, old in state.items()}


def median(state: Arrays, updates: Sequence[Update]) -> dict[str, Array]:
    """Median of each element's holders, unweighted."""
    return {key: _ranked(key, old, updates, _median) for key, old in state.items()}


AGGREGATES: dict[str, Aggregate] = {"mean": weighted_mean, "trimmed": trimmed_mean, "median": median}


def _ranked(
    key: str, old: Array, updates: Sequence[Update], join: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Array:
    """`join` on the sorted values of elements with equally many holders: (holders, elements) to (elements,)."""
    holders = [update.arrays[key] for update in updates if key in update.arrays]
    values = np.full((len(holders), *old.shape), np.inf)
    for row, array in zip(values, holders, strict=True):
        corner(row, array.shape)[...] = array
    flat = np.sort(values.reshape(len(holders), -1), axis=0)
    counts = np.isfinite(flat).sum(axis=0)
    result = old.astype(np.float64).reshape(-1)
    for count in np.unique(counts[counts > 0]):
        result[counts == count] = join(flat[:count, counts == count])
    return result.reshape(old.shape).astype(old.dtype)


def _trim(ordered: NDArray[np.float64], *, share: float) -> NDArray[np.float64]:
    cut = min(int(np.ceil(share * len(ordered))), (len(ordered) - 1) // 2)
    kept: NDArray[np.float64] = ordered[cut : len(ordered) - cut].mean(axis=0)
    return kept


def _median(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = np.median(ordered, axis=0)
    return middle
