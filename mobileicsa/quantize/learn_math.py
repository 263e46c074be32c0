"""Rounding with gradients, and the distillation losses: pure tensor maths of the learned stage.

Gradients pass a rounding straight through (STE). With q the integer of x, s = (high - low) / n the step of n + 1 codes:
inside the range d x'/d s = q - z - x/s (LSQ, arXiv 1902.08153), at a rail x' is the rail itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.quantize.rounding import short_scale


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, encoding: TensorEncoding) -> Tensor:
        ctx.save_for_backward(x)
        ctx.encoding = encoding
        scale, zero = encoding.scale[0], encoding.zero_point[0]
        q = (x * (1.0 / scale)).round_().clamp_(encoding.qmin - zero, encoding.qmax - zero)
        return q.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,), (x,), e = grads, ctx.saved_tensors, ctx.encoding
        scaled = x * (1.0 / e.scale[0])
        rounded = scaled.round()
        below, above = rounded < e.qmin - e.zero_point[0], rounded > e.qmax - e.zero_point[0]
        inside = grad.masked_fill(below | above, 0.0)
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None
        step = (inside * (rounded - scaled)).sum() / (e.qmax - e.qmin)
        low, high = grad[below].sum() - step, grad[above].sum() + step
        return inside, low, high, None


class _RoundCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, qmin: int, qmax: int, clips: bool) -> Tensor:
        if clips:
            ctx.save_for_backward((codes < qmin - 0.5) | (codes > qmax + 0.5))
        return codes.round().clamp_(qmin, qmax)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        if ctx.saved_tensors:
            (outside,) = ctx.saved_tensors
            grad = grad.masked_fill(outside, 0.0)
        return grad, None, None, None


def on_grid(x: Tensor, low: Tensor, high: Tensor, encoding: TensorEncoding) -> Tensor:
    """x rounded to `encoding`, the grid of the range [low, high] (0-dim tensors), differentiable in all three."""
    y: Tensor = _OnGrid.apply(x, low, high, encoding)  # type: ignore[no-untyped-call]
    return y


def round_codes(codes: Tensor, qmin: int, qmax: int, *, clips: bool) -> Tensor:
    """Nearest integers in [qmin, qmax]. The gradient passes; outside of the limits only without `clips`, so that a
    learned code can return."""
    y: Tensor = _RoundCodes.apply(codes, qmin, qmax, clips)  # type: ignore[no-untyped-call]
    return y


def exported_scale(scale: Tensor) -> Tensor:
    """The scale as it will be stored; its gradient passes."""
    return scale + (short_scale(scale.detach()) - scale.detach())


def top_targets(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most likely tokens (N, k) int32 of logits (N, vocab) and their log-probabilities (N, k)."""
    values, indices = torch.log_softmax(logits, dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
    return indices.to(torch.int32), values


def top_divergence(logits: Tensor, indices: Tensor, log_probabilities: Tensor) -> Tensor:
    """Mean KL(teacher || student) over rows, the tokens outside of the teacher's top k taken as one.

    logits (N, vocab) are the student's; merging outcomes never raises a divergence: a lower bound of the whole.
    """
    ours = torch.log_softmax(logits, dim=-1).gather(1, indices.to(torch.int64))
    p = log_probabilities.exp()
    rest, our_rest = (1.0 - p.sum(1)).clamp(min=1e-6), (1.0 - ours.exp().sum(1)).clamp(min=1e-6)
    return ((p * (log_probabilities - ours)).sum(1) + rest * (rest.log() - our_rest.log())).mean()


def hidden_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of hidden states over the target's energy."""
    return F.mse_loss(output, target) / target.square().mean()
