"""`World`: the frozen base, and every client's text as the base sees it, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileicsa.calibrate.inputs import InputMoments
from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.methods.fedp2eft.config import Config
from mobileicsa.methods.fedp2eft.generator import features
from mobileicsa.methods.fedp2eft.tail import Tail, linear_names
from mobileicsa.methods.fedp2eft.texts import ClientText, read_clients
from mobileicsa.methods.lora import Adapter, Slot
from mobileicsa.models.decoder import Decoder, positions_for
from mobileicsa.models.load import load_decoder
from mobileicsa.models.product import linear

# Windows of a pass that fills the cache.
CACHE_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`hidden` (N, T, hidden) at the tail's entry, `targets` (N, T) int64 within `World.vocabulary`."""

    hidden: Tensor
    targets: Tensor

    def take(self, rows: Tensor) -> Batch:
        return Batch(hidden=self.hidden[rows], targets=self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class Client:
    """`scored`: text that it is judged by; `features`: statistics of what the base's linears read on `train`."""

    name: str
    pool: str
    train: Batch
    scored: Batch
    features: Tensor

    @property
    def examples(self) -> int:
        return len(self.train.targets)


class World:
    """The base's last blocks with a slot on every linear, and clients by name.

    The head knows only the tokens that occur in some client's text (`vocabulary`, sorted ids): a loss here is the
    cross entropy within them, which a step can afford.
    """

    def __init__(self, config: Config, files: Mapping[str, Sequence[Path]], tick: Callable[[], None]) -> None:
        checkpoint = open_checkpoint(config.base)
        self.base_name, self.base_identity = config.base, checkpoint.identity
        self.device = device_named(config.device)
        self._pool = "seen" if config.scored == "validation" else None
        self.decoder = load_decoder(checkpoint).to(self.device)
        spec = self.decoder.spec
        texts = read_clients(files, checkpoint, spec, config.length, config.parts)
        self.vocabulary = torch.unique(torch.cat([text.windows.reshape(-1) for text in texts])).to(self.device)
        tail = self.new_tail(config.adapted_layers)
        self.names = [name for _, name in tail.linears()]
        self.slots = [_put_slot(tail, path) for path, _ in tail.linears()]
        self.shapes = [(slot.linear.out_features, slot.linear.in_features) for slot in self.slots]
        self.costs = torch.tensor([sum(shape) for shape in self.shapes])
        self.tail = tail
        self._head = self.decoder.head.proj.weight[self.vocabulary]
        self.clients = {text.name: self._client(text, config, tick) for text in texts}

    def new_tail(self, adapted_layers: int) -> Tail:
        """Another copy of the last blocks, without slots, sharing the weights."""
        return Tail(self.decoder, adapted_layers).to(self.device)

    def pool(self, name: str) -> list[Client]:
        """The clients to score in a pool: its own, or the seen ones where their validation text is scored."""
        return [client for client in self.clients.values() if client.pool == (self._pool or name)]

    @contextmanager
    def adapted(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """One adapter or None a linear, in the order of `names`, on for as long as the block runs."""
        try:
            for slot, adapter in zip(self.slots, adapters, strict=True):
                slot.adapter = adapter
            yield
        finally:
            for slot in self.slots:
                slot.adapter = None

    def loss(self, batch: Batch, tail: nn.Module | None = None) -> Tensor:
        """Mean cross entropy in nats a token (scalar)."""
        hidden = (self.tail if tail is None else tail)(batch.hidden)
        logits = linear(self.decoder.head.norm(hidden), self._head)
        if self.decoder.head.softcap is not None:
            logits = self.decoder.head.softcap(logits)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

    @torch.no_grad()
    def score(self, batch: Batch, tail: nn.Module | None = None) -> float:
        """The loss over all windows of a part, which have equal lengths."""
        parts = [batch.take(rows) for rows in torch.split(torch.arange(len(batch.targets)), CACHE_BATCH)]
        total = sum(float(self.loss(part, tail)) * len(part.targets) for part in parts)
        return total / len(batch.targets)

    def _client(self, text: ClientText, config: Config, tick: Callable[[], None]) -> Client:
        windows = text.windows.to(self.device)
        targets = torch.searchsorted(self.vocabulary, windows[:, 1:].contiguous())
        counts = [config.train, config.validation, config.test]
        train, validation, test = torch.split(torch.arange(len(windows)), counts)
        scored = validation if config.scored == "validation" else test
        # Statistics are those of the training text alone.
        hidden, moments = hidden_states(self.decoder, self.tail.first, windows[train, :-1], observe=True)
        others, _ = hidden_states(self.decoder, self.tail.first, windows[scored, :-1])
        tick()
        return Client(
            name=text.name,
            pool=text.pool,
            train=Batch(hidden=hidden, targets=targets[train]),
            scored=Batch(hidden=others, targets=targets[scored]),
            features=features(moments),
        )


def device_named(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("device=cuda: torch sees no such device", hint="leave device out, or use such a machine")
    return torch.device(name)


@torch.no_grad()
def hidden_states(
    decoder: Decoder, layer: int, ids: Tensor, *, observe: bool = False
) -> tuple[Tensor, list[InputMoments]]:
    """What block `layer` reads for ids (N, T): (N, T, hidden); with `observe` the moments of every linear's input.

    The moments leave the start token out: it is the same for all clients, and its activations are the largest by far.
    """
    moments = {name: InputMoments() for name in linear_names(decoder.spec)} if observe else {}
    hooks = [
        decoder.get_submodule(name).register_forward_pre_hook(
            lambda module, arguments, moment=moment: moment.update(arguments[0][:, 1:])
        )
        for name, moment in moments.items()
    ]
    last = decoder.spec.num_layers if observe else layer
    ropes, masks = positions_for(decoder.spec, 0, ids.shape[1], ids.device)
    kept = []
    try:
        for batch in torch.split(ids, CACHE_BATCH):
            x = decoder.embed(batch)
            for index in range(last):
                if index == layer:
                    kept.append(x)
                spec = decoder.spec.layers[index]
                x, _ = decoder.layers[index](
                    x, None if spec.rope is None else ropes[spec.rope], masks[spec.sliding_window]
                )
            if not observe:
                kept.append(x)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(kept), list(moments.values())


def _put_slot(tail: Tail, path: str) -> Slot:
    linear = tail.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    slot = Slot(linear)
    parent, _, name = path.rpartition(".")
    setattr(tail.get_submodule(parent), name, slot)
    return slot
