"""On Flower's interfaces rounds end as in our own simulation, bad replies included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from mobileicsa.methods.federated import Server
from mobileicsa.methods.flower import keyed_strategy, to_record, train_reply
from mobileicsa.methods.updates import Arrays, Update

flwr = pytest.importorskip("flwr", reason="flwr is not installed (extra federated)")

START = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float32)}
NODES = (11, 12, 13)


def fit(client: str, round: int, state: Arrays) -> Update | None:
    """Node 11 holds half of the keys, 12 all, 13 breaks in the second round."""
    number = int(client)
    step = np.float32(0.1 * (number - 10))
    arrays = {key: array + step for key, array in state.items() if number != 11 or key == "a"}
    if number == 13 and round == 1:
        arrays["b"] = np.full((2, 2), np.nan, np.float32)
    return Update(client=client, round=round, examples=number, arrays=arrays)


def grid() -> Any:
    from flwr.serverapp import Grid

    class ThisProcess(Grid):
        """All clients in this process, one after the other."""

        run = None

        def set_run(self, run_id: int) -> None: ...

        def get_node_ids(self) -> Iterable[int]:
            return NODES

        def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
            raise NotImplementedError

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
            raise NotImplementedError

        def create_message(self, *arguments: Any, **named: Any) -> Any:
            raise NotImplementedError

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> Iterable[Any]:
            return [train_reply(message, str(message.metadata.dst_node_id), fit) for message in messages]

    return ThisProcess()


def test_flowers_rounds_end_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Flower's own process tells a strategy: without it no message can be written.
    monkeypatch.setattr("flwr.supercore.task_identity.TaskIdentity._run_id", 1)
    monkeypatch.setattr("flwr.supercore.task_identity.TaskIdentity._node_id", 1)
    monkeypatch.setattr("flwr.supercore.task_identity.TaskIdentity._task_id", 1)
    on_flower, ours = (Server(state=dict(START)) for _ in range(2))
    strategy = keyed_strategy(on_flower, fraction_evaluate=0.0)
    result = strategy.start(grid(), initial_arrays=to_record(on_flower.state), num_rounds=3)
    for round in range(3):
        updates = [fit(str(node), round, ours.state) for node in NODES]
        ours.close(update for update in updates if update is not None)
    assert on_flower.counts() == ours.counts()
    assert ours.counts()["rejected_not_finite"] == 1
    for key, array in ours.state.items():
        np.testing.assert_allclose(result.arrays[key].numpy(), array, rtol=1e-6)
