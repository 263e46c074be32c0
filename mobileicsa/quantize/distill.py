"""What learning has in common, whatever its scope: parameters and rates, targets, the loss of a batch, a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.device import compute_device
from mobileicsa.calibrate.stream import WeightSource
from mobileicsa.models.decoder import LayerCache, positions_for
from mobileicsa.models.load import filled_decoder
from mobileicsa.models.placed import PlacedWindows
from mobileicsa.quantize.learn_math import hidden_error, next_token_loss, top_divergence, top_targets
from mobileicsa.quantize.recipe import Learning
from mobileicsa.quantize.replay import Replay
from mobileicsa.quantize.student import Base, Student
from mobileicsa.quantize.student_layers import GainEdge, RangeEdge, StudentLinear

TOP_TOKENS = 64
WARM_UP = 0.05  # share of the steps
LAST_RATE = 0.05  # share of the peak rate at the end of the cosine
GRADIENT_NORM = 1.0
# Windows that are never learned from: on them it is decided whether learning has helped.
HELD_OUT = 8


def held_out(windows: int) -> int:
    """How many of the windows (the last ones) are held out."""
    return min(HELD_OUT, max(1, windows // 8))


def used(windows: Tensor, learning: Learning) -> Tensor:
    """Of windows (N, T), or what else has an entry a window, the held-out ones, and before them no more than the steps
    of a stage see; but as many as make the same ones held out of what is returned."""
    held = held_out(len(windows))
    seen = max(learning.steps * learning.batch, 7 * held)
    return torch.cat((windows[:-held][:seen], windows[-held:]))


@dataclass(frozen=True)
class Targets:
    """What the float model says of one window of T tokens: its most likely tokens and their log-probabilities
    (T, k) and its own loss, or its last hidden states (T, hidden). `offset`: how many positions further on than right
    behind the prefix the window stands."""

    tokens: Tensor | None = None
    log_probabilities: Tensor | None = None
    next_loss: float = math.nan
    hidden: Tensor | None = None
    offset: int = 0


@torch.no_grad()
def float_targets(
    base: Base,
    weights: WeightSource,
    windows: Tensor,
    loss: str,
    tick: Callable[[], None],
    offsets: Tensor | None = None,
) -> list[Targets]:
    """One entry a window (N, T) that follows the prefix, `offsets` (N,) positions further on; kept on the CPU."""
    spec, prefix, device = base.plan.spec, base.plan.prefix_ids, compute_device()
    teacher = filled_decoder(spec, weights.fill).to(device)
    past: list[LayerCache] | None = None
    if prefix:
        positions = positions_for(spec, 0, len(prefix), device)
        _, past = teacher.hidden(torch.tensor([prefix]).to(device), *positions)
    placed, found = PlacedWindows(spec, len(prefix), windows.shape[1], device), []
    places = [0] * len(windows) if offsets is None else offsets.tolist()
    for window, offset in zip(windows.to(device), places, strict=True):
        hidden, _ = teacher.hidden(window[None], *placed.at(torch.tensor([offset]).to(device)), past)
        if loss == "hidden":
            found.append(Targets(hidden=hidden[0].cpu(), offset=offset))
        else:
            logits = teacher.head(hidden)[0]
            tokens, log_probabilities = (part.cpu() for part in top_targets(logits, TOP_TOKENS))
            found.append(Targets(tokens, log_probabilities, next_token_loss(logits, window), offset=offset))
        tick()
    return found


def stacked(targets: list[Targets]) -> tuple[Tensor, ...]:
    """A batch's offsets (B,) and targets: hidden states (B, T, hidden), or tokens and log-probabilities (B * T, k)."""
    offsets = torch.tensor([t.offset for t in targets])
    if targets[0].hidden is not None:
        return offsets, torch.stack([t.hidden for t in targets if t.hidden is not None])
    tokens = torch.cat([t.tokens for t in targets if t.tokens is not None])
    return offsets, tokens, torch.cat([t.log_probabilities for t in targets if t.log_probabilities is not None])


def loss_of(student: Student, windows: Tensor, *wanted: Tensor, save_memory: bool = False) -> Tensor:
    """Mean loss of a batch of windows (B, T) against what is `wanted` (of `stacked`), on the student's device."""
    windows, offsets, *wanted = (tensor.to(student.device) for tensor in (windows, *wanted))  # type: ignore[assignment]
    hidden = student.hidden(windows, offsets, save_memory=save_memory)
    if len(wanted) == 1:
        return hidden_error(hidden, wanted[0])
    return top_divergence(student.decoder.head(hidden).flatten(0, 1), *wanted)


def parameter_groups(
    modules: Iterable[nn.Module], prefix: Iterable[nn.Parameter], scalings: Iterable[nn.Parameter], learning: Learning
) -> list[dict[str, Any]]:
    """AdamW's groups of a model's or a block's parameters; those of a part whose rate is 0 are frozen."""
    parts: dict[str, list[nn.Parameter]] = {"ranges": [], "scales": [], "weights": [], "gains": []}
    for module in modules:
        if isinstance(module, RangeEdge) and module.learns:
            parts["ranges"].append(module.log)
        elif isinstance(module, StudentLinear):
            parts["scales"].append(module.clip if module.mode == "clip" else module.log_scale)
            if module.mode == "latent":
                parts["weights"].append(module.weight)
        elif isinstance(getattr(module, "gain", None), GainEdge):
            parts["gains"].append(module.get_parameter("weight"))
    parts |= {"equivalent": list(scalings), "prefix": list(prefix)}
    groups = []
    for part, parameters in parts.items():
        rate = getattr(learning, f"lr_{part}")
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
        if rate > 0 and parameters:
            groups.append({"params": parameters, "lr": rate, "peak": rate})
    return groups


class Descent:
    """AdamW with a short linear warm-up and a cosine, gradients clipped by their norm."""

    def __init__(
        self, groups: list[dict[str, Any]], steps: int, loss_of_batch: Callable[..., Tensor], *, replays: bool = True
    ) -> None:
        """`loss_of_batch` is given the tensors of `advance`; on a GPU each step `replays` the first one's kernels."""
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.steps, self.loss_of_batch = steps, loss_of_batch
        self.replays = replays and self.parameters[0].device.type == "cuda"
        self.replay: Replay | None = None

    def advance(self, step: int, *batch: Tensor) -> float:
        """One step; NaN where loss or gradient is not finite, and then nothing has changed."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step, self.steps)
        if self.replays and self.replay is None:
            device = self.parameters[0].device
            self.replay = Replay(self._gradients, [t.to(device) for t in batch], self._drop_gradients)
        loss = self._gradients(*batch) if self.replay is None else self.replay(batch)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM))
        finite = math.isfinite(norm) and math.isfinite(float(loss))
        if finite:
            self.optimizer.step()
        if self.replay is None:
            self._drop_gradients()
        return float(loss) if finite else math.nan

    def _gradients(self, *batch: Tensor) -> Tensor:
        with torch.enable_grad():
            loss = self.loss_of_batch(*batch)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def restore(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak rate at a step (from 0)."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Window indices (size,) without end: each pass in a new order."""
    random = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=random)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
