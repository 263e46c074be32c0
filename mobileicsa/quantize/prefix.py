"""The sink prefix: which few tokens, fixed in the cache, absorb the massive activations.

After PrefixQuant (arXiv 2410.05265): outlier tokens placed once in front, with constant K/V, keep later tokens free
of massive activations. PrefixQuant takes the most frequent outlier tokens; which token works differs from model to
model (a newline absorbs them in SmolLM2, a random word does not), so candidates are compared by what is to be
minimised: the expected KL to the float model of rounding the content's activations to 8 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from mobileicsa.calibrate.stream import WeightSource
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder, LayerCache
from mobileicsa.models.load import empty_weights
from mobileicsa.quantize.fisher import Seen, SensedModel

CANDIDATES = 16
# Texts differ more than tokens of one text: the windows' beginnings tell more for the same work.
LENGTH = 128
# Successive halving: how many candidates see how many windows. Only few can afford the windows that tell near ones
# apart, and few windows are enough to leave the hopeless ones behind.
ROUNDS = ((CANDIDATES, 2), (6, 6), (3, 16))
WINDOWS = ROUNDS[-1][1]
# A further token must take away this share of the loss, for it costs a cache slot.
MIN_GAIN = 0.02


@dataclass(frozen=True)
class PrefixTrial:
    """Means over calibration `windows`, nats a token.

    `loss`: expected KL of rounding the activations behind the prefix;
    `shift`: KL of the float model behind the prefix to itself behind BOS alone. It does not count: that of text which
    the model wrote behind BOS says nothing of other text (SmolLM2 behind a space: perplexity of its own text 6 %
    higher, of WikiText-2 and PUD 1 % lower).
    """

    ids: tuple[int, ...]
    loss: float
    shift: float
    windows: int


@dataclass
class _Runner:
    """A prefix in the race, with what it showed in each window so far."""

    ids: tuple[int, ...]
    past: list[LayerCache] | None
    seen: list[Seen] = field(default_factory=list)

    @property
    def loss(self) -> float:
        return fmean(seen.edges for seen in self.seen)

    @property
    def trial(self) -> PrefixTrial:
        return PrefixTrial(self.ids, self.loss, fmean(seen.prefix for seen in self.seen), len(self.seen))


class _Race:
    def __init__(self, model: SensedModel, windows: Tensor, seed: int, tick: Callable[[], None]) -> None:
        self.model, self.windows, self.seed, self.tick = model, windows, seed, tick
        self.plain = [model.plain_logits(window) for window in windows]

    def start(self, ids: tuple[int, ...]) -> _Runner:
        return _Runner(ids, self.model.past(ids))

    def advance(self, runner: _Runner, windows: int) -> None:
        """Let a runner see windows up to this number; every runner's draws are the same."""
        for index in range(len(runner.seen), min(windows, len(self.windows))):
            generator = torch.Generator().manual_seed(self.seed + index)
            runner.seen.append(self.model.see(self.windows[index], runner.past, self.plain[index], generator))
            self.tick()

    def run(self, prefixes: Sequence[tuple[int, ...]]) -> list[_Runner]:
        """Every prefix, the best first."""
        racing, out = [self.start(ids) for ids in prefixes], list[_Runner]()
        for places, windows in ROUNDS:
            racing, out = racing[:places], racing[places:] + out
            for runner in racing:
                self.advance(runner, windows)
            racing.sort(key=lambda runner: runner.loss)
        return racing + out


def race_length(windows: int, max_tokens: int) -> int:
    """How often a search over `windows` calibration windows calls its `tick`, at most."""
    passes = before = 0
    for places, wanted in ROUNDS:
        seen = min(wanted, windows)
        passes, before = passes + places * (seen - before), seen
    return before + max_tokens * passes


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
    window's backward pass keeps, and the logits of `WINDOWS` windows.
    """
    with empty_weights():
        decoder = Decoder(spec, primitive=False)
    weights.fill(decoder, "")
    model = SensedModel(decoder, scheme)
    race = _Race(model, windows[:WINDOWS, :LENGTH], seed, tick)
    prefix: tuple[int, ...] = () if spec.bos_id is None else (spec.bos_id,)
    counts = Counter(windows.flatten().tolist())
    candidates = [token for token, _ in counts.most_common(CANDIDATES + 1) if token != spec.bos_id][:CANDIDATES]
    best = race.start(prefix)
    race.advance(best, WINDOWS)
    trials = [best.trial]
    for _ in range(max_tokens if candidates else 0):
        found = race.run([(*best.ids, token) for token in candidates])
        trials += [runner.trial for runner in found]
        if found[0].loss > best.loss * (1 - MIN_GAIN):
            break
        best = found[0]
    return best.ids, trials
