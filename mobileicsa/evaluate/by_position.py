"""Loss by a token's position in its window, and whether its difference to a reference grows there (drift).

Errors that pile up in the cache, or an encoding of RoPE that is too coarse for high positions, show up as a loss that
leaves the float model's the further a window goes; a mean over short windows hides them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

WINDOW = 2048
# Where the first bucket ends; each further one ends at twice the position.
FIRST_END = 128
# Nats a doubling. From 128 tokens to 2,048 are four doublings: below this, perplexity over float grows by less than
# 2 % on the way, a third of what static 8 bits cost SmolLM2 at any position.
DRIFT = 0.005
# With fewer windows a standard error is as uncertain as what it judges.
LEAST_WINDOWS = 4
# Beyond so many standard errors a slope is not chance.
ERRORS = 2.0


def bucket_edges(length: int) -> list[int]:
    """0, 128, 256, 512 ... length: bucket i holds the positions [edges[i], edges[i + 1])."""
    edges, end = [0], FIRST_END
    while end < length:
        edges.append(end)
        end *= 2
    return [*edges, length]


class ByPosition:
    """Sums of the loss over windows of equal length, by bucket of positions.

    A position is the number of the window's text tokens before the predicted one; BOS or a prefix does not count.
    """

    def __init__(self, length: int, first: int, *, compared: bool) -> None:
        """length: text tokens of a window; first: position of the first that is predicted."""
        self.edges, self.compared = bucket_edges(length), compared
        positions = torch.arange(first, length)
        self._inner = torch.tensor(self.edges[1:-1], dtype=torch.int64)
        self.tokens = self._sums(positions, torch.ones(len(positions), dtype=torch.float64))
        # Of the tokens that a model has read, BOS or a prefix being one; mean over a bucket's positions.
        self.log2 = self._sums(positions, (positions + 1).to(torch.float64).log2()) / self.tokens
        # By window: sums of the loss, of the reference's, and of the divergence from it.
        self._windows: list[tuple[Tensor, Tensor, Tensor]] = []

    def _bucket_of(self, positions: Tensor) -> Tensor:
        return torch.bucketize(positions, self._inner, right=True)

    def _sums(self, positions: Tensor, values: Tensor) -> Tensor:
        """Sums (buckets,) float64 of one value a position."""
        return torch.zeros(len(self.edges) - 1, dtype=torch.float64).index_add(0, self._bucket_of(positions), values)

    def next_window(self) -> None:
        none = torch.zeros(len(self.edges) - 1, dtype=torch.float64)
        self._windows.append((none, none.clone(), none.clone()))

    def add(self, start: int, *values: Tensor) -> None:
        """Of the present window's tokens from position `start` on, each (n,) in nats: losses; with a reference its
        losses too, and KL(reference || model)."""
        positions = torch.arange(start, start + len(values[0]))
        for sums, value in zip(self._windows[-1], values, strict=False):
            sums += self._sums(positions, value.double())

    def result(self) -> dict[str, Any]:
        """`buckets`: mean losses in nats; with a reference their difference, and `slope` in nats a doubling with the
        verdict `drift`, None where it cannot be judged; `kl_slope` likewise of KL(reference || model), which no token
        that the text happens to hold makes noisy. Standard errors are over windows, whose tokens share a text."""
        ours, theirs, apart = (torch.stack(sums) / self.tokens for sums in zip(*self._windows, strict=True))
        found: dict[str, Any] = {"windows": len(self._windows), "buckets": self._buckets(ours)}
        if not self.compared:
            return found
        difference = ours - theirs
        errors = _standard_error(difference)
        for index, row in enumerate(found["buckets"]):
            row["reference_loss"] = float(theirs[:, index].mean())
            row["difference"] = float(difference[:, index].mean())
            row["standard_error"] = None if errors is None else float(errors[index])
            row["kl_to_reference"] = float(apart[:, index].mean().clamp(min=0.0))
        return found | self._drift(difference, apart)

    def _buckets(self, ours: Tensor) -> list[dict[str, Any]]:
        return [
            {
                "from": self.edges[index],
                "to": self.edges[index + 1] - 1,
                "tokens": int(self.tokens[index]) * len(self._windows),
                "log2_position": float(self.log2[index]),
                "loss": float(ours[:, index].mean()),
            }
            for index in range(len(self.edges) - 1)
        ]

    def _drift(self, difference: Tensor, apart: Tensor) -> dict[str, Any]:
        """Least squares of the difference, and of the divergence, over log2 of the tokens read, a bucket weighing as
        much as it has tokens. The verdict is the loss's: the question is whether perplexity leaves float's."""
        unknown = dict.fromkeys(("slope", "slope_standard_error", "kl_slope", "kl_slope_standard_error", "drift"))
        found: dict[str, Any] = {**unknown, "threshold": DRIFT}
        if len(self.tokens) < 2:
            return found | {"note": f"no slope: the window ends within the first {FIRST_END} positions"}
        away = self.log2 - (self.tokens * self.log2).sum() / self.tokens.sum()
        weights = self.tokens * away / (self.tokens * away.square()).sum()
        slopes = torch.stack((difference, apart), dim=1) @ weights
        slope, kl_slope = slopes.mean(dim=0).tolist()
        found |= {"slope": slope, "kl_slope": kl_slope}
        errors = _standard_error(slopes)
        if errors is None:
            return found | {"note": f"not judged: it takes {LEAST_WINDOWS} windows"}
        error, kl_error = errors.tolist()
        limit = ERRORS * error
        found |= {"slope_standard_error": error, "kl_slope_standard_error": kl_error}
        found["drift"] = slope >= DRIFT and slope > limit
        if not found["drift"] and slope + limit > DRIFT:
            found["note"] = f"slopes up to {slope + limit:.4f} cannot be told from none: more windows could"
        return found


def _standard_error(values: Tensor) -> Tensor | None:
    """Of the mean over the first dimension, the windows; None where they are too few."""
    count = len(values)
    return None if count < LEAST_WINDOWS else values.std(dim=0) / math.sqrt(count)
