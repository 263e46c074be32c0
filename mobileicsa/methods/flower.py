"""Our server and clients on Flower's interfaces (flwr 1.42: message-based strategies), for federations of real devices.

flwr asks for an older typer than the command line needs, so that pip cannot install both: extra `federated` holds what
it needs besides, and `pip install --no-deps flwr==1.42.0` the package itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.methods.federated import Fit, Server
from mobileicsa.methods.updates import Arrays, Update

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
EXAMPLES, ROUND = "num-examples", "server-round"


def _flower() -> Any:
    try:
        import flwr.app
        import flwr.serverapp.strategy as strategy
    except ImportError as error:
        raise EnvironmentFault(
            f"Flower cannot be imported: {error}",
            hint="pip install 'mobileicsa[federated]' && pip install --no-deps flwr==1.42.0",
        ) from error
    return flwr.app, strategy


def to_record(arrays: Arrays) -> Any:
    """Arrays by key as Flower's ArrayRecord."""
    app, _ = _flower()
    return app.ArrayRecord(array_dict={key: app.Array(array) for key, array in arrays.items()})


def from_record(record: Any) -> dict[str, Any]:
    """An ArrayRecord's arrays by key; read with numpy alone, nothing is unpickled."""
    return {key: array.numpy() for key, array in record.items()}


def keyed_strategy(server: Server, **options: Any) -> Any:
    """A Flower strategy that samples as its FedAvg does (`options` are FedAvg's) and closes rounds by `server`.

    Replies may hold a part of the keys. Start it with `initial_arrays=to_record(server.state)`; the guard's counts and
    reasons are in `server.reports`.
    """
    app, strategy = _flower()

    class KeyedStrategy(strategy.FedAvg):  # type: ignore[misc, name-defined]
        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
            sent, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
            report = server.close(_update(message, server_round) for message in sent)
            metrics = app.MetricRecord({"accepted": report.accepted, "rejected": len(report.rejected)})
            return to_record(server.state), metrics

    return KeyedStrategy(**options)


def train_reply(message: Any, client: str, fit: Fit) -> Any:
    """What a ClientApp's train function answers: `fit` on the arrays of `message`; Flower's rounds count from 1."""
    app, _ = _flower()
    round = int(message.content[CONFIG][ROUND]) - 1
    update = fit(client, round, from_record(message.content[ARRAYS]))
    if update is None:
        return app.Message(error=app.Error(code=0, reason=f"{client} drops out of round {round}"), reply_to=message)
    metrics = app.MetricRecord({EXAMPLES: update.examples, ROUND: update.round + 1})
    content = app.RecordDict({ARRAYS: to_record(update.arrays), METRICS: metrics})
    return app.Message(content=content, reply_to=message)


def _update(message: Any, server_round: int) -> Update:
    """A reply as an update; one without arrays or metrics becomes one that the guard drops."""
    records = message.content
    arrays: Any = next(iter(records.array_records.values()), {})
    metrics: Any = next(iter(records.metric_records.values()), {})
    return Update(
        client=str(message.metadata.src_node_id),
        round=int(metrics.get(ROUND, server_round)) - 1,
        examples=int(metrics.get(EXAMPLES, 0)),
        arrays=from_record(arrays),
    )
