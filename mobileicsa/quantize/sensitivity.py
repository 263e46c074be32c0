"""What rounding costs, part by part, before anything is rounded: expected KL to the float model from second moments.

See `fisher` for the estimate. E[e^2] of a linear's output follows from its weight's rounding error and its inputs'
second moments. The model runs forward twice and backward once, behind a prefix forward twice more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.device import compute_device
from mobileicsa.calibrate.inputs import InputMean, products
from mobileicsa.calibrate.stream import Stream, WeightSource, run_content, run_prefix
from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder, DecoderLayer
from mobileicsa.models.edge import named_edges
from mobileicsa.models.load import filled_decoder
from mobileicsa.quantize.block import weight_encodings
from mobileicsa.quantize.feedback import GROUPS
from mobileicsa.quantize.fisher import SensedModel
from mobileicsa.quantize.gptq_math import feedback_noise
from mobileicsa.quantize.packed import promotable
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rounding import clipped_scale, round_weight, weight_scale

# Enough for a stable mean of squares; more windows change no order.
WINDOWS = 32
INPUT_ROLES = ("norm_out", "attention_out", "down_in")


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Expected losses, KL in nats a token: of each weight at the scheme's bits and promoted, of all 8-bit edges (in
    `inputs` those of linears in the blocks, one by one), and of the prefix, behind which the float model itself says
    something else.

    What the table and the head cost at their 8 bits, and 16-bit edges, is left out: next to nothing.
    """

    plain: dict[str, float]
    promoted: dict[str, float]
    edges: float
    prefix: float
    inputs: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    spec: ModelSpec,
    weights: WeightSource,
    prefix: tuple[int, ...],
    windows: Tensor,
    scheme: QuantScheme,
    recipe: Recipe,
    seed: int,
    progress_of: Callable[[int], Callable[[], None]],
) -> Sensitivity:
    """Sensitivity on windows (N, T) of token ids that follow the prefix; `seed` draws the tokens.

    Memory: the float model, and what one window's backward pass keeps. `progress_of(total)` gives the tick.
    """
    device = compute_device()
    model = filled_decoder(spec, weights.fill).to(device)
    windows = windows[:WINDOWS].to(device)
    stream = Stream(model.embed(windows), model.embed(torch.tensor([prefix], dtype=torch.int64).to(device)))
    tick = progress_of(spec.num_layers * stream.batches + windows.shape[0])
    errors: dict[str, tuple[Tensor, Tensor]] = {}
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        stream = _pass(spec, index, layer, stream, scheme, recipe, errors, tick)
    gradients, edges, shift = _gradients(model, windows, prefix, scheme, seed, tick)
    losses = [{name: 0.5 * float(gradients[name] @ errors[name][i]) for name in promotable(spec)} for i in (0, 1)]
    inputs = {name: edges[name] for name in wideable(model, scheme)}
    return Sensitivity(plain=losses[0], promoted=losses[1], edges=sum(edges.values()), prefix=shift, inputs=inputs)


def wideable(model: Decoder, scheme: QuantScheme) -> list[str]:
    """Names of the edges that may get 16 bits: 8-bit inputs of the blocks' linears."""
    return [
        name
        for name, edge in named_edges(model)
        if name.startswith("layers.") and edge.role in INPUT_ROLES and scheme.bits(edge.role) == 8
    ]


def _pass(
    spec: ModelSpec,
    index: int,
    layer: DecoderLayer,
    stream: Stream,
    scheme: QuantScheme,
    recipe: Recipe,
    errors: dict[str, tuple[Tensor, Tensor]],
    tick: Callable[[], None],
) -> Stream:
    """One block: the stream behind it, and into `errors` its linears' expected output errors."""
    path = f"layers.{index}"
    hessians = {group[0]: InputMean(products) for group in GROUPS}
    prefix, past = run_prefix(spec, layer, stream)
    hooks = [layer.get_submodule(name).register_forward_pre_hook(hook) for name, hook in hessians.items()]
    content = torch.cat(list(run_content(spec, layer, stream.content, past, tick)))
    for hook in hooks:
        hook.remove()
    if not bool(torch.isfinite(content).all()):
        raise InputError(f"{path}: the float model's output is NaN or infinite", hint="are the weights intact?")
    encodings = [weight_encodings(path, scheme, promoted) for promoted in ((), promotable(spec))]
    for group in GROUPS:
        hessian = hessians[group[0]].mean
        noise = feedback_noise(hessian) if recipe.weights == "gptq" else None
        for name in group:
            weight = layer.get_parameter(f"{name}.weight")
            plain, wide = (_row_errors(weight, hessian, by_name[name], recipe, noise) for by_name in encodings)
            errors[f"{path}.{name}.weight"] = plain, wide
    return Stream(content, prefix)


def _row_errors(
    weight: Tensor, hessian: Tensor, encoding: WeightEncoding, recipe: Recipe, noise: float | None
) -> Tensor:
    """Expected squared error (out,) of each output of a weight (out, in), rounded as the recipe will.

    `noise`: that of error feedback (see `gptq_math.feedback_noise`), None to nearest.
    """
    if recipe.weights == "nearest":
        scale = weight_scale(weight, encoding)
    else:
        scale = clipped_scale(weight, hessian.diagonal().to(weight.dtype), encoding)
    error = round_weight(weight, scale, encoding) * scale[:, None] - weight
    if noise is not None:
        return error.square().mean(dim=1) * noise
    return ((error @ hessian.to(weight.dtype)) * error).sum(dim=1)


class _OutputSquares:
    """Forward hook: sums the squared gradient of each output channel."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._add)  # type: ignore[no-untyped-call]

    def _add(self, gradient: Tensor) -> None:
        self.total = self.total + gradient.flatten(0, -2).square().sum(dim=0)


def _gradients(
    model: Decoder,
    windows: Tensor,
    prefix: tuple[int, ...],
    scheme: QuantScheme,
    seed: int,
    tick: Callable[[], None],
) -> tuple[dict[str, Tensor], dict[str, float], float]:
    """E[g^2] (out,) a token of every promotable weight's output; the loss of rounding each edge, and of the prefix."""
    outputs = {name: _OutputSquares() for name in promotable(model.spec)}
    for name, hook in outputs.items():
        model.get_submodule(name.removesuffix(".weight")).register_forward_hook(hook)
    sensed, losses = SensedModel(model, scheme), Counter[str]()
    past, bos = sensed.past(prefix), model.spec.bos_id
    shift = 0.0
    if past is not None:
        plain = sensed.past(() if bos is None else (bos,))
        shift = fmean(sensed.next_losses(windows, past)) - fmean(sensed.next_losses(windows, plain))
    generator = torch.Generator(sensed.device).manual_seed(seed)
    for window in windows:
        losses.update(sensed.edge_losses(window, past, generator))
        tick()
    squares = {name: output.total / windows.numel() for name, output in outputs.items()}
    return squares, {name: total / len(windows) for name, total in losses.items()}, shift
