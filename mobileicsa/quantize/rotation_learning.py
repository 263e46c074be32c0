"""Learned rotations: R1 and each layer's R2 turned to where rounding is expected to cost least (`rotation: learned`).

After SpinQuant (arXiv 2405.16406), which learns on the Stiefel manifold through a rounded model. Here the model runs
on few windows once; what is learned from then on are moments (see `rotation_learning_math`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobileicsa.calibrate.stream import WeightSource
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.load import filled_decoder
from mobileicsa.quantize.block import feeds_back
from mobileicsa.quantize.distill import batches, held_out, rate_factor
from mobileicsa.quantize.feedback import LINEARS
from mobileicsa.quantize.learn_model import History
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rotation import Rotated
from mobileicsa.quantize.rotation_learning_math import Turning
from mobileicsa.quantize.rotation_moments import STREAM, VALUE, LayerMoments, layer_loss, moments_of
from mobileicsa.quantize.steps import Progress, StageStore

STAGE = "rotations"
WINDOWS = 16  # that are learned from
STEPS = 64
# Layers a step: any third of a model says where the whole stream should turn.
LAYERS = 10
RATE = 0.03  # radians by which a row turns a step, at its peak
INTERVAL = 16  # steps between two looks at the held-out windows

log = logging.getLogger(__name__)


def windows_seen(windows: int) -> int:
    """How many of the calibration windows the stage looks at."""
    held = held_out(windows)
    return min(WINDOWS, max(1, windows - held)) + held


def learn_rotations(
    spec: ModelSpec,
    rotated: Rotated,
    prefix: tuple[int, ...],
    windows: Tensor,
    scheme: QuantScheme,
    recipe: Recipe,
    *,
    seed: int,
    store: StageStore,
    run: str,
    progress: Progress,
) -> tuple[WeightSource, dict[str, Any]]:
    """The model rotated further, and for the report the expected loss (KL, nats a token) on held-out windows by step.

    `spec` is the rotated one; windows (N, T) follow the prefix (or hold BOS where there is none), the last of them are
    held out: there the best rotations are chosen, the plain ones among them. Memory: the float model, one window's
    backward pass, and for each layer five matrices of the hidden size's square, once more for the held-out windows.
    """
    learner = _Learner(spec, rotated, scheme, seed)
    input_hash = f"{run}:{STAGE}"
    if store.done(STAGE, input_hash):
        learner.load(*store.load(STAGE))
    if not learner.finished:
        tick = progress.step(STAGE, windows_seen(windows.shape[0]) + STEPS)
        seen = _look_at_model(spec, rotated, prefix, windows, feeds_back(recipe, scheme), seed, tick)
        if learner.step == 0:
            learner.look(seen)
        for _ in range(learner.step):
            tick()
        while not learner.finished:
            learner.advance(seen)
            tick()
            if learner.step % INTERVAL == 0 or learner.finished:
                if learner.history.stopped is None:
                    learner.look(seen)
                store.save(STAGE, input_hash, *learner.state())
    history = learner.history
    if history.stopped:
        log.warning("learning rotations stopped (%s); kept step %d", history.stopped, history.best_step)
    stream = learner.best[STREAM][0] if STREAM in learner.best else None
    return rotated.turned(stream, learner.best[VALUE]), {"steps": STEPS, **vars(history)}


@dataclass(frozen=True)
class _Seen:
    """By layer: the linears' weights, and moments over the windows to learn from and over those held out."""

    weights: list[dict[str, Tensor]]
    training: list[LayerMoments]
    held: list[LayerMoments]


def _look_at_model(
    spec: ModelSpec,
    rotated: Rotated,
    prefix: tuple[int, ...],
    windows: Tensor,
    feedback: bool,
    seed: int,
    tick: Callable[[], None],
) -> _Seen:
    model = filled_decoder(spec, rotated.fill)
    past = model(torch.tensor([prefix]))[1] if prefix else None
    rotations = (VALUE,) if rotated.stream is None else (STREAM, VALUE)
    generator = torch.Generator().manual_seed(seed)
    held = held_out(windows.shape[0])
    training, kept = (
        moments_of(model, part, past, rotations, generator, tick, feedback=feedback)
        for part in (windows[: windows_seen(windows.shape[0]) - held], windows[-held:])
    )
    weights: list[dict[str, Tensor]] = [
        {name: model.get_parameter(f"layers.{index}.{name}.weight") for name in LINEARS}
        for index in range(spec.num_layers)
    ]
    return _Seen(weights, training, kept)


class _Learner:
    """The rotations that are added to the plain ones, and the place in the run."""

    def __init__(self, spec: ModelSpec, rotated: Rotated, scheme: QuantScheme, seed: int) -> None:
        self.scheme, self.layers = scheme, spec.num_layers
        self.turnings = {VALUE: Turning.at_identity(spec.num_layers, spec.head_dim)}
        if rotated.stream is not None:
            self.turnings[STREAM] = Turning.at_identity(1, spec.hidden_size)
        self.order = batches(self.layers, min(LAYERS, self.layers), seed)
        self.step, self.history, self.losses = 0, History(), list[float]()
        self.best = self._matrices()

    @property
    def finished(self) -> bool:
        return self.step >= STEPS or self.history.stopped is not None

    def _matrices(self) -> dict[str, Tensor]:
        return {name: turning.matrices for name, turning in self.turnings.items()}

    def _loss(self, index: int, moments: LayerMoments, weights: dict[str, Tensor], leaves: dict[str, Tensor]) -> Tensor:
        turns = {name: leaf[index if name == VALUE else 0] for name, leaf in leaves.items()}
        return layer_loss(weights, moments, turns, self.scheme)

    def advance(self, seen: _Seen) -> None:
        """One step on some layers; where loss or gradient is not finite nothing is moved and learning stops."""
        leaves = {name: matrix.float().requires_grad_() for name, matrix in self._matrices().items()}
        total = 0.0
        for index in next(self.order).tolist():
            with torch.enable_grad():
                loss = self._loss(index, seen.training[index], seen.weights[index], leaves)
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        self.losses.append(total * self.layers / min(LAYERS, self.layers))
        gradients = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
        if not math.isfinite(total) or not all(bool(torch.isfinite(g).all()) for g in gradients.values()):
            self.history.stopped = f"loss or gradient not finite at step {self.step + 1}"
        else:
            for name, turning in self.turnings.items():
                turning.advance(gradients[name], RATE * rate_factor(self.step, STEPS))
        self.step += 1

    @torch.no_grad()
    def look(self, seen: _Seen) -> None:
        """Held-out loss now; keeps the rotations where it is the lowest yet."""
        leaves = {name: matrix.float() for name, matrix in self._matrices().items()}
        layers = zip(seen.held, seen.weights, strict=True)
        loss = sum(float(self._loss(index, *layer, leaves)) for index, layer in enumerate(layers))
        if self.history.look(self.step, loss, self.losses):
            self.best = self._matrices()
        self.losses = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{name}.best": matrix for name, matrix in self.best.items()}
        for name, turning in self.turnings.items():
            values = {"matrices": turning.matrices, "moment": turning.moment, "square": turning.square}
            tensors |= {f"{name}.{key}": value for key, value in values.items()}
        return tensors, {"step": self.step, "history": vars(self.history)}

    def load(self, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        self.step, self.history = int(data["step"]), History(**data["history"])
        self.best = {name: tensors[f"{name}.best"] for name in self.turnings}
        for name in self.turnings:
            matrices, moment, square = (tensors[f"{name}.{key}"] for key in ("matrices", "moment", "square"))
            self.turnings[name] = Turning(matrices, moment, square, self.step)
        for _ in range(self.step):
            next(self.order)
