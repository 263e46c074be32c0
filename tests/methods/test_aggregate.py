"""Joining updates: holders per key, corners, robust means (RELIABILITY 64)."""

from __future__ import annotations

import numpy as np
import pytest

from mobileicsa.methods.aggregate import AGGREGATES, median, trimmed_mean, weighted_mean
from mobileicsa.methods.federated import Server
from mobileicsa.methods.updates import Guard, Update


def update(client: str, examples: int = 1, **arrays: object) -> Update:
    return Update(
        client=client, round=0, examples=examples, arrays={k: np.asarray(v, np.float32) for k, v in arrays.items()}
    )


def test_a_key_is_the_weighted_mean_of_its_holders() -> None:
    state = {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32), "z": np.full(2, 7, np.float32)}
    joined = weighted_mean(state, [update("a", 3, x=[1, 1], y=[2, 2]), update("b", 1, x=[5, 5])])
    assert {key: value.tolist() for key, value in joined.items()} == {"x": [2, 2], "y": [2, 2], "z": [7, 7]}
    assert all(array.dtype == np.float32 for array in joined.values())


@pytest.mark.parametrize("name", AGGREGATES)
def test_ranks_2_4_and_64_join_element_by_element(name: str) -> None:
    state = {"lora_a": np.full((64, 3), 9, np.float32)}
    server = Server(state=state, guard=Guard(corners=True), aggregate=AGGREGATES[name])
    sent = [(2, 1.0), (4, 2.0), (64, 3.0)]
    report = server.close(update(f"rank-{rank}", lora_a=np.full((rank, 3), value)) for rank, value in sent)
    assert report.accepted == 3
    column = server.state["lora_a"][:, 0]
    assert column[0] == 2.0
    assert column[3] == 2.5
    assert (column[4:] == 3.0).all()


@pytest.mark.parametrize("join", [trimmed_mean, median])
def test_less_than_30_percent_sign_flippers_do_not_turn_a_robust_mean(join: object) -> None:
    rng = np.random.default_rng(0)
    honest = [update(f"h{i}", x=1 + 0.1 * rng.standard_normal(50)) for i in range(8)]
    flipped = [update(f"f{i}", 10, x=-5 * np.ones(50)) for i in range(3)]
    state = {"x": np.zeros(50, np.float32)}
    values = np.stack([u.arrays["x"] for u in honest])
    found = join(state, [*honest, *flipped])["x"]  # type: ignore[operator]
    # The published bound of trimmed means: what is left lies between honest values.
    assert (found >= values.min(axis=0)).all()
    assert (found <= values.max(axis=0)).all()
    assert weighted_mean(state, [*honest, *flipped])["x"].mean() < 0
