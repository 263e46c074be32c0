"""Rounding with gradients, and the distillation losses: pure tensor maths of the learned stage.

Gradients pass a rounding straight through (STE). With q the integer of x, s = (high - low) / n the step of n + 1 codes:
inside the range d x'/d s = q - z - x/s (LSQ, arXiv 1902.08153), at a rail x' is the rail itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileicsa.models.product import linear
from mobileicsa.quantize.grid_math import Grid
from mobileicsa.quantize.rounding import short_scale

# Steps that a rounding inside of the range is off by at most: half of one, and float32 by 0.002 of 16 bits.
MOST_ERROR = 0.505
# Probability outside of the top tokens counts as at least this.
LEAST_REST = 1e-6


def immediate(device: torch.device) -> bool:
    """Whether a value can be looked at without waiting for a device, so that work can be left out."""
    return device.type == "cpu"


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
        q = (x * (1.0 / grid.scale)).round_()
        ctx.saturates = True
        if immediate(x.device):
            smallest, largest = torch.aminmax(q)
            ctx.saturates = bool(smallest < grid.bottom) or bool(largest > grid.top)
        y = (_limited(q, grid) if ctx.saturates else q).mul_(grid.scale)
        ctx.grid = grid
        if ctx.saturates or ctx.needs_input_grad[1]:
            ctx.save_for_backward(y - x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,), grid = grads, ctx.grid
        saved = ctx.saved_tensors  # once: recomputed blocks give them no second time
        if not saved:
            return grad, None, None, None
        (error,) = saved
        inside, low, high = grad, grad.new_zeros(()), grad.new_zeros(())
        if ctx.saturates:
            inside, low, high = _parted(grad, error, MOST_ERROR * grid.scale)
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None
        step = torch.dot(inside.reshape(-1), error.reshape(-1)) / (grid.scale * (grid.top - grid.bottom))
        return inside, low - step, high + step, None


def _limited(q: Tensor, grid: Grid) -> Tensor:
    if isinstance(grid.bottom, Tensor) and not immediate(q.device):  # `clamp_` is ten times slower with tensors
        return torch.minimum(torch.maximum(q, grid.bottom, out=q), torch.as_tensor(grid.top), out=q)
    return q.clamp_(float(grid.bottom), float(grid.top))


def _parted(grad: Tensor, error: Tensor, most: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """`grad`, zero where a rounding is off by more than `most`; the sums of what is lost below the range and above."""
    if immediate(grad.device):  # one pass each, where a mask of booleans alone takes three
        inside = torch.ops.aten.hardtanh_backward(grad, error, -float(most), float(most))
        below = torch.ops.aten.threshold_backward(grad, error, float(most)).sum()
    else:
        inside = grad.masked_fill(error.abs() > most, 0.0)
        below = grad.masked_fill(error <= most, 0.0).sum()
    return inside, below, (grad - inside).sum() - below


class _RoundCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, qmin: int, qmax: int, clips: bool) -> Tensor:
        if clips:
            ctx.save_for_backward((codes < qmin - 0.5) | (codes > qmax + 0.5))
        return codes.round().clamp_(qmin, qmax)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        saved = ctx.saved_tensors
        if saved:
            grad = grad.masked_fill(saved[0], 0.0)
        return grad, None, None, None


def on_grid(x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """x rounded to `grid`, that of the range [low, high] (0-dim tensors), differentiable in all three."""
    y: Tensor = _OnGrid.apply(x, low, high, grid)  # type: ignore[no-untyped-call]
    return y


def round_codes(codes: Tensor, qmin: int, qmax: int, *, clips: bool) -> Tensor:
    """Nearest integers in [qmin, qmax]. The gradient passes; outside of the limits only without `clips`, so that a
    learned code can return."""
    y: Tensor = _RoundCodes.apply(codes, qmin, qmax, clips)  # type: ignore[no-untyped-call]
    return y


def product_dtype(device: torch.device) -> torch.dtype:
    """What products of a training pass are computed in: bfloat16 where the processor multiplies it faster.

    Integers up to 256 are exact in bfloat16, so it is the inputs' scales and the sums that are rounded, by 0.2 %.
    """
    if device.type == "cpu":
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


class _ScaledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        rows, matrix = x.reshape(-1, x.shape[-1]).to(dtype), codes.to(dtype)
        plain = linear(rows, matrix).to(x.dtype)
        ctx.save_for_backward(rows, matrix, scale, plain)
        return (plain * scale).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,), (rows, matrix, scale, plain) = grads, ctx.saved_tensors
        grad = grad.reshape(plain.shape)
        scaled = (grad * scale).to(rows.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = linear(scaled, matrix.T).to(grad.dtype).view(*grads[0].shape[:-1], -1)
        of_codes = linear(scaled.T, rows.T).to(grad.dtype) if ctx.needs_input_grad[1] else None
        of_scale = (grad * plain).sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_codes, of_scale, None


def scaled_product(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x (..., in) times codes (out, in) transposed, each output times its scale (out,); products and their gradients in
    `dtype`. The scale's gradient needs no product of its own."""
    y: Tensor = _ScaledProduct.apply(x, codes, scale, dtype)  # type: ignore[no-untyped-call]
    return y


def exported_scale(scale: Tensor) -> Tensor:
    """The scale as it will be stored; its gradient passes."""
    return scale + (short_scale(scale.detach()) - scale.detach())


def top_targets(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most likely tokens (N, k) int32 of logits (N, vocab) and their log-probabilities (N, k)."""
    values, indices = torch.log_softmax(logits, dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
    return indices.to(torch.int32), values


def next_token_loss(logits: Tensor, ids: Tensor) -> float:
    """Mean loss in nats of a window's own tokens ids (T,) but the first; logits (T, vocab). NaN where T is 1."""
    return float(F.cross_entropy(logits[:-1], ids[1:]))


class _TopDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, indices: Tensor, log_probabilities: Tensor) -> Tensor:
        picked, p = indices.to(torch.int64), log_probabilities.exp()
        largest = logits.amax(dim=1, keepdim=True)
        powers = (logits - largest).exp_()
        total = powers.sum(dim=1, keepdim=True)
        ours = logits.gather(1, picked) - (largest + total.log())
        rest, our_rest = 1.0 - p.sum(1), 1.0 - ours.exp().sum(1)
        kept = our_rest > LEAST_REST
        rest, our_rest = rest.clamp(min=LEAST_REST), our_rest.clamp(min=LEAST_REST)
        if ctx.needs_input_grad[0]:
            # With q the student's probabilities, Q their sum over the teacher's k, P = sum p, r = rest / (1 - Q):
            # dL/dz = q (P - r Q) + [in k](r q - p).
            ratio, rows = torch.where(kept, rest / our_rest, 0.0)[:, None], logits.shape[0]
            q = ours.exp()
            gradient = powers.mul_((p.sum(1, keepdim=True) - ratio * q.sum(1, keepdim=True)) / (total * rows))
            gradient.scatter_add_(1, picked, (ratio * q - p) / rows)
            ctx.save_for_backward(gradient)
        return ((p * (log_probabilities - ours)).sum(1) + rest * (rest.log() - our_rest.log())).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grads[0], None, None


def top_divergence(logits: Tensor, indices: Tensor, log_probabilities: Tensor) -> Tensor:
    """Mean KL(teacher || student) over rows, the tokens outside of the teacher's top k taken as one.

    logits (N, vocab) are the student's; merging outcomes never raises a divergence: a lower bound of the whole.
    """
    loss: Tensor = _TopDivergence.apply(logits, indices, log_probabilities)  # type: ignore[no-untyped-call]
    return loss


def hidden_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of hidden states over the target's energy."""
    return F.mse_loss(output, target) / target.square().mean()
