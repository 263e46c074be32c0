"""An early-exit model in the operators of integer-only compilers: sums, products and functions of one number.

Norms and softmax are taken apart as in a decoder's primitive layers, and the numbers of the graph become constants,
which can have an encoding. Names of weights stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mobileicsa.models.early_exit_vit import Attention, ExitVit


class PrimitiveNorm(nn.Module):
    """LayerNorm over the last dimension."""

    inverse_size: Tensor
    epsilon: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("inverse_size", torch.tensor(1.0 / norm.normalized_shape[0]), persistent=False)
        self.register_buffer("epsilon", torch.tensor(float(norm.eps)), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        centered = rows - rows.sum(-1, keepdim=True) * self.inverse_size
        mean_square = (centered * centered).sum(-1, keepdim=True) * self.inverse_size
        root = torch.sqrt(mean_square + self.epsilon)
        return centered * torch.reciprocal(root) * self.weight + self.bias


class PrimitiveSoftmax(nn.Module):
    """Softmax over the last dimension."""

    def forward(self, scores: Tensor) -> Tensor:
        powers = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        return powers * torch.reciprocal(powers.sum(dim=-1, keepdim=True))


FORMS: dict[type, Callable[[nn.Module], nn.Module]] = {
    nn.LayerNorm: PrimitiveNorm,  # type: ignore[dict-item]
    nn.Softmax: lambda _: PrimitiveSoftmax(),
}


def primitive_form(model: ExitVit) -> ExitVit:
    """A copy of a model that computes the same function in such operators."""
    made = copy.deepcopy(model)
    for module in list(made.modules()):
        for name, child in list(module.named_children()):
            form = FORMS.get(type(child))
            if form is not None:
                setattr(module, name, form(child))
        if isinstance(module, Attention):
            scale = module.scale
            del module.scale
            module.register_buffer("scale", torch.tensor(scale), persistent=False)
    return made
