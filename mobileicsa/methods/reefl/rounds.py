"""One task's federation: clients of different depth train what they hold, the server joins it key by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from mobileicsa.methods.base import Tick
from mobileicsa.methods.federated import Server, simulate
from mobileicsa.methods.loop import MovingMean, batches, cosine, fit
from mobileicsa.methods.lora import fold_adapters
from mobileicsa.methods.reefl.config import ReeflConfig
from mobileicsa.methods.reefl.data import Federation
from mobileicsa.methods.reefl.losses import ramp
from mobileicsa.methods.reefl.models import accuracies, build, device, read, resized, write
from mobileicsa.methods.reefl.variants import Variant, budget, join, takes_part
from mobileicsa.methods.updates import Arrays, Guard, Update
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec, held

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
# Keeps a round's shuffles apart from the next one's.
ROUND_STRIDE = 1009
HISTORY_BATCH = 256

# Indices of a client's examples to the logits of the exits it holds.
LogitsOf = Callable[[Tensor], Sequence[Tensor]]


@dataclass(kw_only=True)
class Clients:
    """All clients of a task. Models are built once for each budget and filled with what the server sends."""

    variant: Variant
    spec: ExitVitSpec
    config: ReeflConfig
    federation: Federation
    start: Mapping[str, Tensor]
    seed: int
    _models: dict[int, tuple[ExitVit, dict[str, nn.Parameter]]] = field(default_factory=dict)
    _histories: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        every = enumerate(self.federation.clients)
        return [name for number, name in every if takes_part(number, self.variant, self.config)]

    def model(self, exits: int) -> tuple[ExitVit, dict[str, nn.Parameter]]:
        """The model of a budget and the parameters that a client of it holds and trains."""
        if exits not in self._models:
            model, learned = build(self.variant.spec(self.spec, exits), self.start, self.config, self.seed)
            own = {name: value for name, value in learned.items() if held(name, model.spec, exits)}
            self._models[exits] = model, own
        return self._models[exits]

    def fit(self, client: str, round: int, state: Arrays) -> Update:
        """A client's round: SGD on its own examples from the server's parameters."""
        exits = budget(list(self.federation.clients).index(client), len(self.spec.exits))
        model, parameters = self.model(exits)
        write(state, parameters)
        examples = self.federation.clients[client]
        model.train()
        logits_of = self._logits_of(client, model, exits)
        learned = list(parameters.values())
        _train(logits_of, exits, learned, examples.labels, self.variant, self.config, round, self.seed)
        return Update(client=client, round=round, examples=len(examples), arrays=read(parameters))

    def _logits_of(self, client: str, model: ExitVit, exits: int) -> LogitsOf:
        """By a client's indices. CLS rows that nothing learned can change are computed once for each client."""
        inputs = self.federation.clients[client].inputs
        if self.config.regime != "frozen" or model.spec.modulation:
            return lambda indices: model(resized(inputs[indices], model.spec), exits)
        if client not in self._histories:
            with torch.no_grad():
                rows = [model.history(resized(part, model.spec), exits) for part in torch.split(inputs, HISTORY_BATCH)]
            self._histories[client] = torch.cat(rows).cpu()  # all clients' at once
        history = self._histories[client]
        return lambda indices: model.answers(history[indices].to(device()), exits)

    def accuracies(self, state: Arrays) -> list[float]:
        """Accuracy at each exit of the model that a client of that budget holds, on what is scored."""
        whole = len(self.spec.exits)
        if self.variant.widths == (1.0,):
            return accuracies(self._filled(whole, state), self.federation.scored)
        narrow = range(1, whole + 1)
        return [accuracies(self._filled(exits, state), self.federation.scored, exits=exits)[-1] for exits in narrow]

    def merged(self, state: Arrays) -> dict[str, Tensor]:
        """All parameters of the whole model, LoRA folded in; afterwards the clients are of no more use."""
        model = self._filled(len(self.spec.exits), state)
        self._models.clear()
        fold_adapters(model)
        return {name: value.cpu() for name, value in model.state_dict().items()}

    def _filled(self, exits: int, state: Arrays) -> ExitVit:
        model, parameters = self.model(exits)
        write(state, parameters)
        return model


def federated(clients: Clients, tick: Tick) -> Server:
    """All rounds; returns the server with the final parameters."""
    config = clients.config
    model, learned = clients.model(len(clients.spec.exits))
    counts = {name: len(examples) for name, examples in clients.federation.clients.items()}
    server = Server(
        state=read(learned),
        guard=Guard(examples=counts, corners=clients.variant.widths != (1.0,)),
        aggregate=partial(join, clients.variant, model.spec),
    )
    simulate(
        server,
        clients.names,
        clients.fit,
        rounds=config.rounds,
        per_round=config.per_round,
        seed=clients.seed,
        tick=tick,
    )
    return server


def _train(
    logits_of: LogitsOf,
    exits: int,
    parameters: list[nn.Parameter],
    labels: Tensor,
    variant: Variant,
    config: ReeflConfig,
    round: int,
    seed: int,
) -> None:
    lr = cosine(round, config.rounds, config.lr, config.end_lr)
    weight = ramp(round, config.ramp)
    # New for each local fit: the teacher is the exit that is best on this client now.
    means = [MovingMean(config.teacher_keep) for _ in range(exits)]

    def loss_of(indices: Tensor) -> Tensor:
        return variant.loss(logits_of(indices), labels[indices].to(device()), weight, means)

    steps = config.local_steps or -(-len(labels) // config.batch)
    shuffled = batches(len(labels), config.batch, seed + ROUND_STRIDE * (round + 1))
    fit(
        parameters,
        OPTIMIZERS[config.optimizer](parameters, lr=lr),
        islice(shuffled, steps),
        loss_of,
        clip_value=config.clip_value,
    )
