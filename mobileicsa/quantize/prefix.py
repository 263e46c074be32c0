"""The sink prefix: which few tokens, fixed in the cache, absorb the massive activations.

After PrefixQuant (arXiv 2410.05265): outlier tokens placed once in front, with constant K/V, keep later tokens free
of massive activations. PrefixQuant takes the most frequent outlier tokens; which token works differs from model to
model (a newline absorbs them in SmolLM2, a random word does not), so candidates are compared by what is to be
minimised: the expected KL to the float model of rounding the content's activations to 8 bits, and the loss of the float
model itself behind the prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mobileicsa.calibrate.device import compute_device
from mobileicsa.calibrate.stream import BATCH, WeightSource
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import LayerCache
from mobileicsa.models.load import filled_decoder
from mobileicsa.quantize.fisher import SensedModel

CANDIDATES = 16
# Texts differ more than tokens of one text: a part of each of more windows tells more for the same work.
LENGTH = 128
# Successive halving: how many candidates see how many windows backward, and how many forward only. Only few can afford
# the windows that tell near ones apart. Four windows leave no more than a quarter behind: in one window the best token
# leads the next by 0.03 +- 0.04 nats, and SmolLM2's best was once ninth of sixteen (0.05 nats lost on other text).
ROUNDS = ((CANDIDATES, 4, 8), (12, 8, 16), (6, 16, 32), (3, 16, 64))
WINDOWS = 64
# A further token costs a cache slot: it must take away this many nats a token.
MIN_GAIN = 0.002


@dataclass(frozen=True)
class PrefixTrial:
    """Nats a token, on the ends of calibration windows.

    edges: expected KL of rounding the activations behind the prefix, mean over `windows` windows;
    shift: the float model's loss behind the prefix above that behind BOS alone, on text whose beginning neither sees,
    mean over `texts` windows.
    Text that the model wrote behind BOS would speak against every other beginning; the end of that text does not, and
    tells what a prefix does to unseen text (SmolLM2 behind a space and a full stop: -0.03 there and on WikiText-2).
    """

    ids: tuple[int, ...]
    edges: float
    shift: float
    windows: int
    texts: int

    @property
    def loss(self) -> float:
        return self.edges + self.shift

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "ids": list(self.ids), "loss": self.loss}


@dataclass
class _Runner:
    """A prefix in the race: the edges' loss and the float model's own in each window that it has seen."""

    ids: tuple[int, ...]
    past: list[LayerCache] | None
    edges: list[float] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)


class _Race:
    """`alone`: the runner without a further token, BOS if there is one; shifts are above its losses."""

    def __init__(
        self, model: SensedModel, bos: tuple[int, ...], windows: Tensor, seed: int, tick: Callable[[], None]
    ) -> None:
        self.model, self.windows, self.seed, self.tick = model, windows.to(model.device), seed, tick
        self.alone = _Runner(bos, model.past(bos))
        self.advance(self.alone, *ROUNDS[-1][1:])

    def advance(self, runner: _Runner, windows: int, texts: int) -> None:
        """Let a runner see windows up to these numbers; every runner's draws are the same."""
        for start in range(len(runner.floats), min(texts, len(self.windows)), BATCH):
            batch = self.windows[start : min(start + BATCH, texts)]
            runner.floats += self.model.next_losses(batch, runner.past)
            self.tick()
        for index in range(len(runner.edges), min(windows, len(self.windows))):
            generator = torch.Generator(self.model.device).manual_seed(self.seed + index)
            runner.edges.append(self.model.edge_loss(self.windows[index], runner.past, generator))
            self.tick()

    def trial(self, runner: _Runner) -> PrefixTrial:
        shift = fmean(mine - alone for mine, alone in zip(runner.floats, self.alone.floats, strict=False))
        return PrefixTrial(runner.ids, fmean(runner.edges), shift, len(runner.edges), len(runner.floats))

    def run(self, prefixes: Sequence[tuple[int, ...]]) -> list[_Runner]:
        """Every prefix, the best first."""
        racing, out = [_Runner(ids, self.model.past(ids)) for ids in prefixes], list[_Runner]()
        for places, windows, texts in ROUNDS:
            racing, out = racing[:places], racing[places:] + out
            for runner in racing:
                self.advance(runner, windows, texts)
            racing.sort(key=lambda runner: self.trial(runner).loss)
        return racing + out


def race_length(windows: int, max_tokens: int) -> int:
    """How often a search over `windows` calibration windows calls its `tick`, at most."""
    passes = alone = seen = read = 0
    for places, wanted, texts in ROUNDS:
        batches = -(-(min(texts, windows) - read) // BATCH)
        new = min(wanted, windows) - seen + batches
        passes, alone, seen, read = passes + places * new, alone + new, min(wanted, windows), min(texts, windows)
    return alone + max_tokens * passes


def search_prefix(
    spec: ModelSpec,
    weights: WeightSource,
    scheme: QuantScheme,
    windows: Tensor,
    max_tokens: int,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> tuple[tuple[int, ...], list[PrefixTrial]]:
    """Greedy search from BOS (or from nothing, for models without one) over frequent tokens of the windows (N, T).

    Returns the prefix and every trial. `tick` is called per pass (see `race_length`). Memory: the float model, what one
    window's backward pass keeps.
    """
    model = SensedModel(filled_decoder(spec, weights.fill).to(compute_device()), scheme)
    bos: tuple[int, ...] = () if spec.bos_id is None else (spec.bos_id,)
    race = _Race(model, bos, windows[:WINDOWS, -LENGTH:], seed, tick)
    counts = Counter(windows.flatten().tolist())
    candidates = [token for token, _ in counts.most_common(CANDIDATES + 1) if token != spec.bos_id][:CANDIDATES]
    best = race.alone
    trials = [race.trial(best)]
    for _ in range(max_tokens if candidates else 0):
        found = race.run([(*best.ids, token) for token in candidates])
        trials += [race.trial(runner) for runner in found]
        if race.trial(found[0]).loss > race.trial(best).loss - MIN_GAIN:
            break
        best = found[0]
    return best.ids, trials
