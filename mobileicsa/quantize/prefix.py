"""The sink prefix: which few tokens, fixed in the cache, absorb the massive activations.

After PrefixQuant (arXiv 2410.05265): outlier tokens placed once in front, with constant K/V, keep later tokens free
of massive activations. PrefixQuant takes the most frequent outlier tokens; which token works differs from model to
model (a newline absorbs them in SmolLM2, a random word does not), so candidates are compared by what is to be
minimised: the 8-bit rounding noise of the content's activations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mobileicsa.calibrate.stream import BATCH, WeightSource, load_layer
from mobileicsa.core.errors import InputError
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Embedding, positions_for
from mobileicsa.models.edge import Edge, replace_edges

CANDIDATES = 16
# Every candidate is tried on few short windows; the best few then on more and whole ones. Ranges are extremes: on 512
# tokens the order of candidates is chance (SmolLM2 took "2" for a space: learned W8A8 at 1.034 of float, not 1.029).
SCREEN_SAMPLES, SCREEN_LENGTH, FINALISTS = 4, 128, 4
SAMPLES = 16
# A further token must take away this share of the noise, for it costs a cache slot.
MIN_GAIN = 0.01


@dataclass(frozen=True)
class PrefixTrial:
    """`noise`: mean over 8-bit edges of rounding noise over signal power, in the content."""

    ids: tuple[int, ...]
    noise: float


class _NoiseEdge(Edge):
    """Relative rounding noise of an 8-bit edge, for several prefixes stacked along the batch.

    Tokens lie along `token_axis` of tensors with heads, along axis 1 of those without.
    """

    def __init__(self, edge: Edge, groups: int, prefix_length: int, token_axis: int, total: Tensor) -> None:
        super().__init__(edge.role, edge.fixed)
        self.groups, self.prefix_length, self.token_axis, self.total = groups, prefix_length, token_axis, total

    def store(self, x: Tensor) -> Tensor:
        axis = self.token_axis if x.dim() == 4 else 1
        rows = x.narrow(axis, self.prefix_length, x.shape[axis] - self.prefix_length).reshape(self.groups, -1)
        low, high = rows.amin(dim=1).clamp(max=0), rows.amax(dim=1).clamp(min=0)
        self.total += ((high - low) / 255).square() / 12 / rows.square().mean(dim=1).clamp(min=1e-12)
        return x


def trial_noise(
    spec: ModelSpec,
    weights: WeightSource,
    scheme: QuantScheme,
    prefixes: Sequence[tuple[int, ...]],
    windows: Tensor,
    tick: Callable[[], None],
) -> list[float]:
    """Noise of each prefix (all of one length) before the same windows (n, T); streams the model once."""
    length = len(prefixes[0])
    rows = [
        torch.cat((torch.tensor(prefix, dtype=torch.int64).expand(windows.shape[0], -1), windows), dim=1)
        for prefix in prefixes
    ]
    with torch.device("meta"):
        embedding = Embedding(spec)
    weights.fill(embedding, "embed.")
    hidden = embedding(torch.cat(rows))
    ropes, masks = positions_for(spec, 0, hidden.shape[1])
    total, edges = torch.zeros(len(prefixes)), 0
    groups_per_batch = max(1, BATCH // windows.shape[0])
    step = groups_per_batch * windows.shape[0]
    for index in range(spec.num_layers):
        layer = load_layer(spec, index, weights)
        rope = None if layer.layer.rope is None else ropes[layer.layer.rope]
        outputs = []
        for start in range(0, hidden.shape[0], step):
            batch = hidden[start : start + step]
            first = start // windows.shape[0]
            groups = batch.shape[0] // windows.shape[0]
            slot = total[first : first + groups]

            def measure(name: str, edge: Edge, slot: Tensor = slot, groups: int = groups) -> Edge:
                if edge.fixed is not None or scheme.activation_bits.get(edge.role, 16) != 8:
                    return Edge(edge.role, edge.fixed)
                # QK norms see (B, T, heads, head_dim), everything behind them (B, heads, T, head_dim).
                token_axis = 1 if name.startswith(("attn.q_norm", "attn.k_norm")) else 2
                return _NoiseEdge(edge, groups, length, token_axis, slot)

            replace_edges(layer, measure)
            edges = sum(isinstance(module, _NoiseEdge) for module in layer.modules())
            outputs.append(layer(batch, rope, masks[layer.layer.sliding_window])[0])
        hidden = torch.cat(outputs)
        if not bool(torch.isfinite(total).all()):
            raise InputError(
                f"calibration: layers.{index}: an activation is NaN or too large for float32",
                hint="are the weights intact?",
            )
        tick()
    return [float(noise) / max(edges * spec.num_layers, 1) for noise in total]


def search_prefix(
    spec: ModelSpec,
    weights: WeightSource,
    scheme: QuantScheme,
    windows: Tensor,
    max_tokens: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[tuple[int, ...], list[PrefixTrial]]:
    """Greedy search from BOS (or from nothing, for models without one) over frequent tokens of the windows (N, T).

    Returns the prefix and the trials of every round's finalists. `tick` is called per layer; a round streams the
    model twice.
    """
    screen, sample = windows[:SCREEN_SAMPLES, :SCREEN_LENGTH], windows[:SAMPLES]
    prefix: tuple[int, ...] = () if spec.bos_id is None else (spec.bos_id,)
    counts = Counter(windows.flatten().tolist())
    candidates = [token for token, _ in counts.most_common(CANDIDATES) if token != spec.bos_id]
    best = trial_noise(spec, weights, scheme, [prefix], sample, tick)[0]
    trials = [PrefixTrial(prefix, best)]
    for _ in range(max_tokens if candidates else 0):
        tried = [(*prefix, token) for token in candidates]
        screened = dict(zip(tried, trial_noise(spec, weights, scheme, tried, screen, tick), strict=True))
        finalists = sorted(tried, key=screened.__getitem__)[:FINALISTS]
        noises = trial_noise(spec, weights, scheme, finalists, sample, tick)
        found = [PrefixTrial(ids, noise) for ids, noise in zip(finalists, noises, strict=True)]
        trials += found
        lowest = min(found, key=lambda trial: trial.noise)
        if lowest.noise > best * (1 - MIN_GAIN):
            break
        prefix, best = lowest.ids, lowest.noise
    return prefix, trials
