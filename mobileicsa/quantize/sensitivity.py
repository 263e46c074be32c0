"""What rounding costs, part by part, before anything is rounded: expected KL to the float model from second moments.

With a rounding error e added to a linear's output y, KL is about half of sum_i E[g_i^2] E[e_i^2], where g is the
gradient of log p(token) for tokens drawn from the model's own prediction: the diagonal of the Fisher information, of
outputs (as K-FAC, arXiv 1503.05671). E[e^2] follows from the weight's rounding error and the inputs' second moments.
The model runs forward three times and backward once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.stream import Stream, WeightSource, run_content, run_prefix
from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder, DecoderLayer, LayerCache, positions_for
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.models.load import empty_weights
from mobileicsa.quantize.block import weight_encodings
from mobileicsa.quantize.feedback import GROUPS
from mobileicsa.quantize.gptq_math import feedback_noise
from mobileicsa.quantize.packed import promotable
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rounding import clipped_scale, round_weight, weight_scale

# Enough for a stable mean of squares; more windows change no order.
WINDOWS = 32


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Expected losses, KL in nats a token: of each weight at the scheme's bits and promoted, of all 8-bit edges, and
    of the prefix, behind which the float model itself says something else.

    What the table and the head cost at their 8 bits, and 16-bit edges, is left out: next to nothing.
    """

    plain: dict[str, float]
    promoted: dict[str, float]
    edges: float
    prefix: float

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
    with empty_weights():
        model = Decoder(spec, primitive=False)
    weights.fill(model, "")
    windows = windows[:WINDOWS]
    stream = Stream(model.embed(windows), model.embed(torch.tensor([prefix], dtype=torch.int64)))
    tick = progress_of(spec.num_layers * stream.batches + windows.shape[0])
    errors: dict[str, tuple[Tensor, Tensor]] = {}
    past: list[LayerCache] = []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        stream, cache = _pass(spec, index, layer, stream, scheme, recipe, errors, tick)
        past.append(cache)
    gradients, noise, shift = _gradients(model, windows, len(prefix), past, scheme, seed, tick)
    losses = [{name: 0.5 * float(gradients[name] @ errors[name][i]) for name in promotable(spec)} for i in (0, 1)]
    return Sensitivity(plain=losses[0], promoted=losses[1], edges=0.5 * noise, prefix=shift)


class _Hessian:
    """Forward pre-hook: the mean of x x^T (in, in) over a linear's inputs x."""

    def __init__(self) -> None:
        self.rows = 0
        self.total = torch.zeros((), dtype=torch.float64)

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        rows = arguments[0].reshape(-1, arguments[0].shape[-1])
        self.total = self.total + (rows.T @ rows).double()
        self.rows += rows.shape[0]

    @property
    def mean(self) -> Tensor:
        return self.total / self.rows


def _pass(
    spec: ModelSpec,
    index: int,
    layer: DecoderLayer,
    stream: Stream,
    scheme: QuantScheme,
    recipe: Recipe,
    errors: dict[str, tuple[Tensor, Tensor]],
    tick: Callable[[], None],
) -> tuple[Stream, LayerCache]:
    """One block: the stream behind it, the prefix's K/V, and into `errors` its linears' expected output errors."""
    path = f"layers.{index}"
    hessians = {group[0]: _Hessian() for group in GROUPS}
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
    return Stream(content, prefix), past


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


class _SensedEdge(Edge):
    """Passes its tensor through; sums the squares of its gradient, and keeps its range."""

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge.role, edge.fixed)
        self.low, self.high = edge.fixed or (0.0, 0.0)
        self.squares = 0.0

    def store(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return x
        # A tensor of its own: the gradient of what reads this edge alone. The first edge is where gradients end.
        y = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        y.register_hook(self._add)  # type: ignore[no-untyped-call]
        if self.fixed is None:
            low, high = torch.aminmax(y.detach())
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        return y

    def _add(self, gradient: Tensor) -> None:
        self.squares += float(gradient.square().sum())

    def noise(self, bits: int) -> float:
        """Squares of the gradient times the variance of a rounding to a grid over the range."""
        step: float = (self.high - self.low) / (2**bits - 1)
        return self.squares * step * step / 12


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
    start: int,
    past: list[LayerCache],
    scheme: QuantScheme,
    seed: int,
    tick: Callable[[], None],
) -> tuple[dict[str, Tensor], float, float]:
    """E[g^2] (out,) a token of every promotable weight's output, the sum of all 8-bit edges' E[g^2] E[e^2], and KL of
    the float model to itself behind a prefix of `start` tokens."""
    sensed: dict[str, _SensedEdge] = {}

    def sense(name: str, edge: Edge) -> Edge:
        if name != "embed.out" and scheme.bits(edge.role) != 8:
            return edge
        sensed[name] = _SensedEdge(edge)
        return sensed[name]

    replace_edges(model, sense)
    outputs = {name: _OutputSquares() for name in promotable(model.spec)}
    for name, hook in outputs.items():
        model.get_submodule(name.removesuffix(".weight")).register_forward_hook(hook)
    random = torch.Generator().manual_seed(seed)
    shift = 0.0
    ropes, masks = positions_for(model.spec, start, windows.shape[1])
    for window in windows:
        with torch.enable_grad():
            hidden, _ = model.hidden(window[None], ropes, masks, past if start else None)
            logits = model.head(hidden)[0]
        probabilities = torch.softmax(logits.detach(), dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=random)
        # The gradient of the sum over positions of log p(drawn token).
        logits.backward(probabilities.neg_().scatter_add_(1, drawn, torch.ones_like(drawn, dtype=logits.dtype)))
        if start:
            shift += float(_divergence(_plain_logits(model, window), logits.detach()))
        tick()
    tokens = windows.numel()
    noise = sum(edge.noise(8) for edge in sensed.values() if scheme.bits(edge.role) == 8)
    return {name: output.total / tokens for name, output in outputs.items()}, noise / tokens, shift / tokens


def _plain_logits(model: Decoder, window: Tensor) -> Tensor:
    """What the model says behind each token of a window (T,) that follows BOS alone, if there is one."""
    bos = model.spec.bos_id
    fed = window if bos is None else torch.cat((torch.tensor([bos]), window))
    logits: Tensor = model(fed[None])[0][0, -len(window) :]
    return logits


def _divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Sum over rows of KL(softmax(logits) || softmax(others))."""
    ours, theirs = torch.log_softmax(logits, dim=-1), torch.log_softmax(others, dim=-1)
    return (ours.exp() * (ours - theirs)).sum()
