"""A block's weights rounded with error feedback, linear after linear, for the inputs that the quantised model has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.statistics import fake_quantize
from mobileicsa.calibrate.stream import run_content
from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import DecoderLayer, LayerCache
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.models.product import linear
from mobileicsa.quantize.gptq_math import round_with_feedback, target_weight
from mobileicsa.quantize.rounding import Rounded, clipped_scale

# Linears that read the same tensor, in the order in which data reaches them.
GROUPS = (
    ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    ("attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
LINEARS = tuple(name for group in GROUPS for name in group)
# Passes of the calibration text through a block, for progress: one for each group, one for what leaves the block.
PASSES = len(GROUPS) + 1
# Edges that only a primitive program has; the rounding is chosen for the borders, which every program has.
INNER_ROLES = ("internal", "sigmoid", "derived")


class InputRows:
    """Forward pre-hook that keeps a linear's inputs (rows, in), batch by batch."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.batches.append(arguments[0].reshape(-1, arguments[0].shape[-1]))


class _GridEdge(Edge):
    """Edge that rounds to its grid in real values."""

    def __init__(self, edge: Edge, encoding: TensorEncoding) -> None:
        super().__init__(edge.role, edge.fixed)
        self.encoding = encoding

    def store(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.encoding)


def quantized_twin(layer: DecoderLayer, encodings: dict[str, TensorEncoding]) -> DecoderLayer:
    """A copy of a float block whose edges round to `encodings` (by path in the block); `layer` gets them too."""

    def encode(name: str, edge: Edge) -> Edge:
        plain = edge.role in INNER_ROLES
        return Edge(edge.role, edge.fixed) if plain else _GridEdge(edge, encodings[name])

    # Before the copy: what the edges have observed must not be copied with them.
    replace_edges(layer, encode)
    return copy.deepcopy(layer)


def round_block(
    spec: ModelSpec,
    layer: DecoderLayer,
    inputs: dict[str, InputRows],
    quantized: Tensor,
    past: LayerCache,
    encodings: dict[str, TensorEncoding],
    weights: Mapping[str, WeightEncoding],
    strength: float,
    tick: Callable[[], None],
    offsets: Tensor | None,
) -> tuple[dict[str, Rounded], Tensor]:
    """Rounded linears by name, and `quantized` (N, T, hidden) behind the quantised block.

    `inputs`: float inputs of the first linear of each group; `past`: the prefix's float K/V; `weights`: by linear;
    `offsets` (N,): those of the windows.
    """
    twin = quantized_twin(layer, encodings)
    keys, values = (fake_quantize(p, encodings[f"attn.{k}_out"]) for p, k in zip(past, "kv", strict=True))
    rounded: dict[str, Rounded] = {}
    for group in GROUPS:
        rows = InputRows()
        hook = twin.get_submodule(group[0]).register_forward_pre_hook(rows)
        moments = Moments()
        for index, _ in enumerate(run_content(spec, twin, quantized, (keys, values), tick, offsets)):
            moments.add(inputs[group[0]].batches[index], rows.batches.pop())
        hook.remove()
        for name in group:
            linear = twin.get_submodule(name)
            integers, scale = rounded[name] = round_linear(
                twin.get_parameter(f"{name}.weight"), moments, weights[name], strength
            )
            linear.weight = nn.Parameter(integers * scale[:, None], requires_grad=False)
    return rounded, torch.cat(list(run_content(spec, twin, quantized, (keys, values), tick, offsets)))


class Moments:
    """Xq Xq^T and X Xq^T over batches of rows; summed in float64, which keeps the smallest eigenvalues."""

    def __init__(self) -> None:
        self.rows = 0
        self.hessian = self.cross = torch.zeros((), dtype=torch.float64)

    def add(self, real: Tensor, rounded: Tensor) -> None:
        self.rows += real.shape[0]
        self.hessian = self.hessian + linear(rounded.T, rounded.T).double()
        self.cross = self.cross + linear(real.T, rounded.T).double()


def round_linear(weight: Tensor, moments: Moments, encoding: WeightEncoding, strength: float = 0.0) -> Rounded:
    """Integers and scales of one weight (out, in), rounded with error feedback for inputs of these moments."""
    target = target_weight(weight, moments.hessian, moments.cross, strength)
    scale = clipped_scale(target, (moments.hessian.diagonal() / moments.rows).to(weight.dtype), encoding)
    return round_with_feedback(target, scale, moments.hessian, encoding), scale
