"""What learned rotations need to know of a model: moments and samples of inputs, and of the gradients of outputs.

One forward and backward pass a window; the loss of any rotation then follows without the model (`layer_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.models.decoder import Decoder, LayerCache
from mobileicsa.quantize.feedback import GROUPS, LINEARS
from mobileicsa.quantize.fisher import draw_backward
from mobileicsa.quantize.rotation_learning_math import (
    feedback_variance,
    grid_error,
    turned,
    turned_both,
    turned_diagonal,
)

STREAM, VALUE = "stream", "value"
# Linear -> the rotations that turn its output and its input.
SITES: Mapping[str, tuple[str | None, str | None]] = {
    "attn.q_proj": (None, STREAM),
    "attn.k_proj": (None, STREAM),
    "attn.v_proj": (VALUE, STREAM),
    "attn.o_proj": (STREAM, VALUE),
    "mlp.gate_proj": (None, STREAM),
    "mlp.up_proj": (None, STREAM),
    "mlp.down_proj": (STREAM, None),
}
# Linear -> role and rotation of the edge at its input; of v, which is not the first to read one, at its output.
EDGES: Mapping[str, tuple[str, str]] = {
    "attn.q_proj": ("norm_out", STREAM),
    "attn.v_proj": ("kv", VALUE),
    "attn.o_proj": ("attention_out", VALUE),
    "mlp.gate_proj": ("norm_out", STREAM),
}
HALF_STEPS_A8 = 127.5
# Rows of an edge that are kept of each window.
SAMPLE_ROWS = 32
Turns = Mapping[str, Tensor]


@dataclass
class LayerMoments:
    """Means a token over some windows.

    gradients: by linear, E[g g^T] of its output in the blocks (k, n, n) that its rotation mixes, n = 1 without one;
    hessians: by first linear of a group, E[x x^T] (in, in) of the inputs, or 0-dim what it comes to for every rotation;
    samples, energies: by edge (see `EDGES`), rows (s, width) and E[|g|^2].
    """

    gradients: dict[str, Tensor] = field(default_factory=dict)
    hessians: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    energies: dict[str, Tensor] = field(default_factory=dict)


def layer_loss(weights: Mapping[str, Tensor], moments: LayerMoments, turns: Turns, scheme: QuantScheme) -> Tensor:
    """Expected KL in nats a token (0-dim) of rounding what `turns` reach of a layer.

    `weights` (out, in) by linear; `turns`: rotations (n, n) by name, those that there are.
    """
    half_steps = WeightEncoding(bits=scheme.weight_bits, narrow=scheme.narrow_weights).qmax
    losses = []
    for group in GROUPS:
        right = turns.get(SITES[group[0]][1] or "")
        hessian = moments.hessians[group[0]]
        variance = hessian if hessian.dim() == 0 else feedback_variance(turned_both(hessian, right, right))
        for name in group:
            left = turns.get(SITES[name][0] or "")
            if left is not None or right is not None:
                error = grid_error(turned_both(weights[name], left, right), half_steps)
                losses.append(variance * (turned_diagonal(moments.gradients[name], left) @ error))
    for name, (role, rotation) in EDGES.items():
        if rotation in turns and scheme.bits(role) == 8:
            rows = turned(moments.samples[name], turns[rotation])
            losses.append(moments.energies[name] * grid_error(rows.reshape(1, -1), HALF_STEPS_A8)[0])
    return 0.5 * torch.stack(losses).sum()


def moments_of(
    model: Decoder,
    windows: Tensor,
    past: list[LayerCache] | None,
    rotations: Collection[str],
    generator: torch.Generator,
    tick: Callable[[], None],
    *,
    feedback: bool,
) -> list[LayerMoments]:
    """A layer each, over windows (N, T) of token ids that follow a prefix's K/V; `tick` is called for each window.

    `rotations`: those that will be turned; `feedback`: whether weights are rounded with error feedback. InputError
    where the model is not finite. Memory: the moments, and what one window's backward pass keeps.
    """
    spec, found = model.spec, [LayerMoments() for _ in model.layers]
    sizes = {name: {STREAM: spec.hidden_size, VALUE: spec.head_dim}[name] for name in rotations}
    hooks = [model.embed.register_forward_hook(lambda module, arguments, output: output.requires_grad_())]
    for index, name in ((index, name) for index in range(spec.num_layers) for name in LINEARS):
        watch = _Watch(found[index], name, sizes.get(SITES[name][0] or "", 1), feedback)
        hooks.append(model.get_submodule(f"layers.{index}.{name}").register_forward_hook(watch))
    for window in windows:
        draw_backward(model, window, past, generator)
        tick()
    for hook in hooks:
        hook.remove()
    for index, moments in enumerate(found):
        if not all(bool(torch.isfinite(h).all()) for h in (*moments.hessians.values(), *moments.gradients.values())):
            raise InputError(f"layers.{index}: the float model is NaN or infinite", hint="are the weights intact?")
        _settle(moments, windows.numel(), rotations)
    return found


class _Watch:
    """Forward hook of a linear that adds to its layer's moments; `size` is that of its output's blocks."""

    def __init__(self, moments: LayerMoments, name: str, size: int, feedback: bool) -> None:
        self.moments, self.name, self.size, self.feedback = moments, name, size, feedback
        self.first = any(name == group[0] for group in GROUPS)

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        moments, name, x = self.moments, self.name, arguments[0]
        output.register_hook(lambda g: _add(moments.gradients, name, _outer(g, self.size)))  # type: ignore[no-untyped-call]
        if self.first:
            seen = x.detach()
            # To nearest it is the trace that counts, which no rotation changes.
            _add(moments.hessians, name, _outer(seen, x.shape[-1])[0] if self.feedback else seen.square().sum())
        if name in EDGES:
            edge = x if self.first else output
            edge.register_hook(lambda g: _add(moments.energies, name, g.square().sum()))  # type: ignore[no-untyped-call]
            rows = edge.detach().flatten(0, -2)
            taken = rows[:: max(1, rows.shape[0] // SAMPLE_ROWS)].clone()
            moments.samples[name] = torch.cat((moments.samples[name], taken)) if name in moments.samples else taken


def _settle(moments: LayerMoments, tokens: int, rotations: Collection[str]) -> None:
    """Sums become means; of a Hessian that no rotation turns only the one number remains that it is for."""
    for sums in (moments.gradients, moments.hessians, moments.energies):
        for name in sums:
            sums[name] = sums[name] / tokens
    for name, hessian in moments.hessians.items():
        if hessian.dim() and SITES[name][1] not in rotations:
            moments.hessians[name] = feedback_variance(hessian)


def _outer(rows: Tensor, size: int) -> Tensor:
    """Sum over rows (..., k size) of r r^T in blocks (k, size, size)."""
    blocks = rows.reshape(-1, rows.shape[-1] // size, size).transpose(0, 1)
    return blocks.square().sum(dim=1)[..., None] if size == 1 else blocks.mT @ blocks


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = value if name not in sums else sums[name] + value
