"""Partitions hold every example once, and are as skewed as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from mobileicsa.methods.partition import by_group, by_label, dirichlet, split

LABELS = np.repeat(np.arange(5), 40)


@pytest.mark.parametrize(
    "parts", [dirichlet(LABELS, 8, 0.1, 0, least=4), by_label(LABELS, 10, 2, 0)], ids=["dirichlet", "label"]
)
def test_every_example_has_one_client(parts: list[np.ndarray]) -> None:
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    assert min(map(len, parts)) >= 4


def test_small_alpha_gives_few_classes_a_client() -> None:
    def classes(alpha: float) -> float:
        parts = dirichlet(LABELS, 8, alpha, 0)
        return float(np.mean([np.bincount(LABELS[part], minlength=5).max() / len(part) for part in parts]))

    assert classes(0.1) > 0.6 > 0.3 > classes(100.0)


def test_by_label_gives_as_many_classes_as_asked() -> None:
    assert {len(np.unique(LABELS[part])) for part in by_label(LABELS, 10, 2, 0)} == {2}


def test_seeds_repeat_and_differ() -> None:
    first, again, other = (dirichlet(LABELS, 8, 0.5, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_groups_and_held_out_examples() -> None:
    groups = by_group(["b", "a", "b", "b"])
    assert {name: part.tolist() for name, part in groups.items()} == {"a": [1], "b": [0, 2, 3]}
    train, held = split(np.arange(10), 0.3, 0)
    assert (len(train), len(held), len(set(train) & set(held))) == (7, 3, 0)
