"""GPTQ: rounding with error feedback, on pure tensors (arXiv 2210.17323).

Minimises ||W X - Q Xq||^2 over integers Q, where X (in, n) are a linear's float inputs and Xq those it will really
get, from layers quantised before it. With H = Xq Xq^T and C = X Xq^T the real-valued minimum is W C H^-1 (the
asymmetric calibration of GPTAQ, arXiv 2504.02692, solved in one step); columns are then rounded one by one, each
error spread over the columns still open as H says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobileicsa.core.plan import WeightEncoding

# Added to H's diagonal, as a share of its mean: without it channels that are hardly used would explode.
DAMPING = 0.01
BLOCK = 128


def damped(hessian: Tensor) -> Tensor:
    """H (in, in) with its diagonal raised, so that it can be inverted where channels are dead."""
    mean = hessian.diagonal().mean().clamp(min=1e-12)
    result = hessian.clone()
    diagonal = result.diagonal()
    diagonal += DAMPING * mean
    return result


def target_weight(weight: Tensor, hessian: Tensor, cross: Tensor, strength: float) -> Tensor:
    """W (out, in) moved towards the least-squares weight for the inputs it will really get.

    `hessian` = Xq Xq^T, `cross` = X Xq^T, both (in, in); strength 0 leaves W, 1 takes the minimum.
    """
    if strength == 0.0:
        return weight
    # W + W (X - Xq) Xq^T (H + damping)^-1, so that the damping pulls towards W and not towards 0.
    solved = torch.linalg.solve(damped(hessian).T, (cross - hessian).T @ weight.T.to(hessian.dtype)).T
    moved: Tensor = weight + strength * solved.to(weight.dtype)
    return moved


def round_with_feedback(weight: Tensor, scale: Tensor, hessian: Tensor, encoding: WeightEncoding) -> Tensor:
    """Integers (out, in) int8 of W with scales (out,); columns in order of falling importance."""
    order, factor = _ordered_factor(hessian)
    open_weight = (weight / scale[:, None])[:, order].to(factor.dtype)
    integers = torch.empty_like(open_weight)
    columns = weight.shape[1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty_like(open_weight[:, start:end])
        for column in range(start, end):
            value = open_weight[:, column]
            rounded = torch.clamp(torch.round(value), encoding.qmin, encoding.qmax)
            integers[:, column] = rounded
            error = (value - rounded) / factor[column, column]
            open_weight[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        open_weight[:, end:] -= errors @ factor[start:end, end:]
    result = torch.empty_like(integers)
    result[:, order] = integers
    return result.to(torch.int8)


def feedback_noise(hessian: Tensor) -> float:
    """Squared output error of a row whose columns are each rounded with a squared error of 1, with feedback; to nearest
    it is H's trace on average. `hessian` (in, in) is the mean of x x^T.
    """
    _, factor = _ordered_factor(hessian)
    return float(factor.diagonal().square().reciprocal().sum())


def _ordered_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in order of falling importance, and `_inverse_factor` of the damped H in that order."""
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return order, _inverse_factor(damped(hessian)[order][:, order])


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of H^-1: its row i is how an error in column i spreads over those behind it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
