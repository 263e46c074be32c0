"""Learning orthogonal matrices, and the loss that they minimise: what rounding is expected to cost, without rounding.

An error e of a linear's output or of an edge costs half of sum_i E[g_i^2 e_i^2] nats, g the gradient of log p(token)
(see `fisher`). A rotation turns tensors and gradients alike, so that every term follows from moments taken once:

- a grid of half-width c in q steps leaves c^2 / (12 q^2) within (the noise of uniform rounding) and (|x| - c)^2 beyond;
  c is the one that costs least, so that by the envelope theorem gradients need not pass through it;
- a row of a weight whose columns have that error each costs it times `feedback_variance` (GPTQ) or H's trace.

Rounding itself is left out on purpose: a rotation that suits the very errors of rounding to nearest (straight-through
gradients) loses that gain to error feedback; before GPTQ, SpinQuant (arXiv 2405.16406) learns for activations alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobileicsa.quantize.gptq_math import damped

# Newton's method finds the least clip of Gaussian rows in four, of rows with one far outlier in six.
NEWTON_STEPS = 6
MOMENTUM, SQUARE_DECAY = 0.9, 0.99


def turned(x: Tensor, rotation: Tensor | None) -> Tensor:
    """x (..., k n) times the block-diagonal matrix of k copies of `rotation` (n, n); None is no rotation."""
    if rotation is None:
        return x
    blocks = x.reshape(*x.shape[:-1], -1, rotation.shape[0]) @ rotation
    return blocks.reshape(x.shape)


def turned_both(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left^T matrix right, block-diagonal as in `turned`."""
    return turned(turned(matrix, right).T, left).T


def turned_diagonal(blocks: Tensor, rotation: Tensor | None) -> Tensor:
    """Diagonal (k n,) of rotation^T block rotation for every block (k, n, n); n is 1 without a rotation."""
    product = blocks if rotation is None else (blocks @ rotation) * rotation
    return product.sum(dim=1).flatten()


def least_clip(rows: Tensor, half_levels: float) -> Tensor:
    """The half-width c (out,) of each row's grid (out, n) with the least `grid_error`, by Newton's method."""
    magnitude = rows.detach().abs()
    slope = 1.0 / (6.0 * half_levels**2)
    clip = 2.0 * magnitude.square().mean(dim=1, keepdim=True).sqrt()
    for _ in range(NEWTON_STEPS):
        beyond = (magnitude - clip).clamp_min_(0.0)
        derivative = slope * clip - 2.0 * beyond.mean(dim=1, keepdim=True)
        clip = clip - derivative / (slope + 2.0 * (beyond > 0).to(clip.dtype).mean(dim=1, keepdim=True))
    return clip[:, 0]


def grid_error(rows: Tensor, half_levels: float) -> Tensor:
    """Expected mean squared error (out,) of rows (out, n) on grids of 2 `half_levels` steps of their least clip."""
    clip = least_clip(rows, half_levels)
    beyond = rows - rows.clamp(-clip[:, None], clip[:, None])
    error: Tensor = clip.square() / (12.0 * half_levels**2) + beyond.square().mean(dim=1)
    return error


def feedback_variance(hessian: Tensor) -> Tensor:
    """`gptq_math.feedback_noise` of the mean of x x^T (in, in), differentiable; 0-dim.

    A column's share is what is left of it when those behind it are known: a pivot of H from the last column upwards.
    """
    order = torch.argsort(hessian.detach().diagonal(), stable=True)
    variance: Tensor = torch.linalg.cholesky(damped(hessian)[order][:, order]).diagonal().square().sum()
    return variance


def cayley(skew: Tensor) -> Tensor:
    """(I - S/2)^-1 (I + S/2), the orthogonal matrix (..., n, n) near exp(S) of a skew-symmetric S."""
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype)
    result: Tensor = torch.linalg.solve(identity - 0.5 * skew, identity + 0.5 * skew)
    return result


@dataclass
class Turning:
    """Orthogonal matrices (k, n, n) float64 on their way down, with Adam's moments in the body's own frame.

    The gradient of a turn U exp(S) by S is the skew part of U^T dL/dU, a frame in which a moment of earlier steps still
    means the same. One second moment a matrix: single entries of S depend on the basis, the mean row's length does not.
    """

    matrices: Tensor
    moment: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def at_identity(cls, count: int, size: int) -> Turning:
        eye = torch.eye(size, dtype=torch.float64).repeat(count, 1, 1)
        return cls(eye, torch.zeros_like(eye), torch.zeros(count, dtype=torch.float64))

    def advance(self, gradient: Tensor, rate: float) -> None:
        """One step against dL/dU (k, n, n); a row turns by about `rate` radians."""
        moved = self.matrices.mT @ gradient.to(self.matrices.dtype)
        skew = 0.5 * (moved - moved.mT)
        self.steps += 1
        self.moment = MOMENTUM * self.moment + (1 - MOMENTUM) * skew
        mean_row = skew.square().sum(dim=(1, 2)) / skew.shape[-1]
        self.square = SQUARE_DECAY * self.square + (1 - SQUARE_DECAY) * mean_row
        length = (self.square / (1 - SQUARE_DECAY**self.steps)).sqrt().clamp(min=1e-30)[:, None, None]
        direction = self.moment / (1 - MOMENTUM**self.steps) / length
        self.matrices = self.matrices @ cayley(-rate * direction)
