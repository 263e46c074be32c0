"""Positions of windows that do not stand right behind the prefix, as most text of a long conversation does not.

Keys are stored rotated by their position, and a sink is seen from afar there: what a model is calibrated on at the
first positions alone, it meets in other values later.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import causal_mask, positions_for, rope_table

Positions = tuple[list[tuple[Tensor, Tensor]], dict[int | None, Tensor]]

# Windows stand no further on than this: what most targets have as context.
REACH = 2048


def reach(spec: ModelSpec, start: int, length: int) -> int:
    """How many positions further on than right behind `start` tokens a window of `length` tokens may stand."""
    return max(0, min(REACH, spec.max_context) - start - length)


class PlacedWindows:
    """RoPE tables and masks of windows of `length` tokens behind `start` valid rows.

    Everything that `at` reads is on `device` from the beginning: a GPU's recorded step may call it.
    """

    def __init__(self, spec: ModelSpec, start: int, length: int, device: torch.device | None = None) -> None:
        places = torch.arange(start + length + reach(spec, start, length))
        tables = [rope_table(rope, places) for rope in spec.ropes]
        self.tables = [(cos.to(device), sin.to(device)) for cos, sin in tables]
        self.first, self.content = torch.arange(start).to(device), torch.arange(start, start + length).to(device)
        _, self.masks = positions_for(spec, start, length, device)

    def at(self, offsets: Tensor) -> Positions:
        """Of B windows, each `offsets` (B,) positions further on than right behind: tables (B, 1, T, 2n); masks (T, S),
        or (B, 1, T, S) of a sliding window, out of which the first rows may lie."""
        query = self.content + offsets[:, None]
        ropes = [(cos[query][:, None], sin[query][:, None]) for cos, sin in self.tables]
        return ropes, {window: self._mask(window, query) for window in self.masks}

    def _mask(self, window: int | None, query: Tensor) -> Tensor:
        if window is None:  # the same wherever the windows stand
            return self.masks[None]
        key = torch.cat((self.first.expand(len(query), -1), query), dim=1)
        return causal_mask(query, key, window)[:, None]


def spread(count: int, furthest: int, share: float, seed: int) -> Tensor:
    """Offsets (count,) int64 in [0, furthest]: the share of the windows, at equal distances, drawn; the others at 0,
    where every conversation begins."""
    random = torch.Generator().manual_seed(seed)
    offsets = torch.randint(0, furthest + 1, (count,), generator=random)
    moved = (torch.arange(count + 1, dtype=torch.float64) * share).floor().diff() > 0
    return torch.where(moved, offsets, 0)
