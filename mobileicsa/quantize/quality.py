"""How near the model is to the float model after each stage of a run, on windows that are held out of learning."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mobileicsa.calibrate.device import compute_device
from mobileicsa.calibrate.stream import WeightSource
from mobileicsa.core.plan import QuantPlan
from mobileicsa.quantize.distill import Targets, float_targets, held_out
from mobileicsa.quantize.learn_math import next_token_loss, top_divergence
from mobileicsa.quantize.ranges import decibels
from mobileicsa.quantize.steps import Progress
from mobileicsa.quantize.student import Base, Student, settled
from mobileicsa.quantize.student_layers import NoiseMeter, RangeEdge

WORST = 5


class Judge:
    """Looks at the model between stages; `rows` are the report's, one a look."""

    def __init__(
        self,
        plan: QuantPlan,
        weights: WeightSource,
        windows: Tensor,
        calibrated: int,
        progress: Progress,
        offsets: Tensor | None = None,
    ) -> None:
        """windows (N, T) follow the prefix (or hold BOS where there is none), `offsets` (N,) positions further on; the
        first `calibrated` set the ranges.

        Peak memory: the whole model in float, then its student.
        """
        held = held_out(windows.shape[0])
        self.windows = windows[-held:]
        self.unseen = windows.shape[0] - held >= calibrated
        self.tick = progress.step("held-out windows", 2 * held)
        places = None if offsets is None else offsets[-held:]
        self.targets = float_targets(Base(plan, {}, {}), weights, self.windows, "logits", self.tick, places)
        self.rows: list[dict[str, Any]] = []

    def look_at(self, stage: str, plan: QuantPlan, tensors: dict[str, Tensor]) -> None:
        self.look(stage, settled(plan, tensors).to(compute_device()))

    @torch.no_grad()
    def look(self, stage: str, student: Student) -> None:
        """Add the row of a stage: KL (as learning measures it), perplexity beside float's, the noisiest edges."""
        edges = {name: edge for name, edge in student.decoder.named_modules() if isinstance(edge, RangeEdge)}
        for edge in edges.values():
            edge.meter = NoiseMeter()
        divergence = loss = 0.0
        for window, target in zip(self.windows, self.targets, strict=True):
            here, place = window.to(student.device), torch.tensor([target.offset]).to(student.device)
            logits = student.decoder.head(student.hidden(here[None], place))[0]
            divergence += _divergence(logits, target) / len(self.windows)
            loss += next_token_loss(logits, here) / len(self.windows)
            if stage == "base":
                self.tick()
        reference = sum(t.next_loss for t in self.targets) / len(self.targets)
        self.rows.append(
            {
                "stage": stage,
                "windows": len(self.windows),
                "unseen": self.unseen,
                "kl": _finite(max(divergence, 0.0)),
                "perplexity": _perplexity(loss),
                "float_perplexity": _perplexity(reference),
                "worst": _worst(edges),
            }
        )
        for edge in edges.values():
            edge.meter = None


def _divergence(logits: Tensor, target: Targets) -> float:
    assert target.tokens is not None
    assert target.log_probabilities is not None
    return float(top_divergence(logits, *(t.to(logits.device) for t in (target.tokens, target.log_probabilities))))


def _worst(edges: dict[str, RangeEdge]) -> list[dict[str, Any]]:
    """The edges with the least signal-to-noise ratio on these windows."""
    ratios = {name: decibels(e.meter.signal, e.meter.noise) for name, e in edges.items() if e.meter is not None}
    known = sorted((ratio, name) for name, ratio in ratios.items() if math.isfinite(ratio))
    return [{"edge": name, "bits": edges[name].start.bits, "sqnr_db": round(ratio, 2)} for ratio, name in known[:WORST]]


def _perplexity(loss: float) -> float | None:
    """None where there is nothing to predict (windows of one token), or no number for it."""
    try:
        return _finite(math.exp(loss))
    except OverflowError:
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
