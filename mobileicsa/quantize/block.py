"""Quantise one decoder block: smooth it, observe it, encode its edges, round its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.inputs import InputMean, squares
from mobileicsa.calibrate.statistics import ObservedEdge, integers_of
from mobileicsa.calibrate.stream import Stream, run_content, run_prefix
from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import DecoderLayer, LayerCache
from mobileicsa.models.edge import Edge, named_edges, replace_edges
from mobileicsa.models.layers import Linear, Norm
from mobileicsa.quantize.equivalent import capture, choose_and_apply, site_factors
from mobileicsa.quantize.feedback import GROUPS, LINEARS, InputRows, round_block
from mobileicsa.quantize.feedback import PASSES as FEEDBACK_PASSES
from mobileicsa.quantize.output_means import FloatMeans
from mobileicsa.quantize.packed import PROMOTED_BITS
from mobileicsa.quantize.ranges import edge_facts, encode_edge
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rounding import Rounded, quantize_weight, rounding_facts


@dataclass
class Piece:
    """A quantised part of the model: encodings, integers and constants by canonical name, facts for the report."""

    edges: dict[str, TensorEncoding] = field(default_factory=dict)
    weights: dict[str, WeightEncoding] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    # The real-valued linear weights behind the integers, kept where learning goes on from them.
    real: dict[str, Tensor] = field(default_factory=dict)
    # The float linears' mean outputs, where biases are corrected by them.
    means: dict[str, Tensor] = field(default_factory=dict)
    # What equivalent scalings multiplied the linears by (see quantize/basis.py).
    factors: dict[str, Tensor] = field(default_factory=dict)

    def cpu(self) -> Piece:
        def moved(named: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.cpu() for name, tensor in named.items()}

        return replace(
            self,
            tensors=moved(self.tensors),
            real=moved(self.real),
            means=moved(self.means),
            factors=moved(self.factors),
        )


def observe(module: nn.Module, expected_updates: int, prefix: str) -> dict[str, ObservedEdge]:
    """Replace every edge by an observing one (in place); returns them by their path in `module`, which is `prefix`."""
    observed: dict[str, ObservedEdge] = {}

    def make(name: str, edge: Edge) -> Edge:
        if edge.role == "derived":
            return edge
        observed[name] = ObservedEdge(edge, expected_updates, f"{prefix}.{name}")
        return observed[name]

    replace_edges(module, make)
    return observed


def feeds_back(recipe: Recipe, scheme: QuantScheme) -> bool:
    """Whether weights are rounded with error feedback: at 8 bits it gains nothing and triples the time."""
    return recipe.weights == "gptq" and scheme.weight_bits < 8


def passes(recipe: Recipe, scheme: QuantScheme) -> int:
    """How often the calibration text goes through a block."""
    return 1 + (recipe.smoothing != "off") + (FEEDBACK_PASSES if feeds_back(recipe, scheme) else 0)


def quantize_block(
    spec: ModelSpec,
    index: int,
    layer: DecoderLayer,
    stream: Stream,
    scheme: QuantScheme,
    recipe: Recipe,
    tick: Callable[[], None],
    promoted: Collection[str] = (),
) -> tuple[Piece, Stream]:
    """The quantised block, on the CPU, and the stream behind it, where the block and its stream are. `tick` is called
    once per batch of windows and pass.

    `promoted`: names of the model's weights that get 8 bits, whatever the scheme's are.
    """
    piece = Piece()
    prefix = f"layers.{index}"
    weights = weight_encodings(prefix, scheme, promoted)
    next_prefix, past = run_prefix(spec, layer, stream)
    if recipe.smoothing != "off":
        _smooth(spec, index, layer, stream, past, scheme, weights, recipe, piece, tick)
        # Scaling moves range into the cached values: the prefix's rows must be those of the scaled block.
        next_prefix, past = run_prefix(spec, layer, stream)
    observed = observe(layer, stream.batches, prefix)
    feedback = stream.quantized is not None
    inputs: dict[str, Any] = {group[0]: InputRows() if feedback else InputMean(squares) for group in GROUPS}
    hooks = [layer.get_submodule(name).register_forward_pre_hook(hook) for name, hook in inputs.items()]
    means = FloatMeans(layer) if recipe.bias_correction else None
    content = torch.cat(list(run_content(spec, layer, stream.content, past, tick, stream.offsets)))
    for hook in hooks:
        hook.remove()
    if means is not None:
        piece.means = means.finish(prefix)
    _observe_prefix(layer, past)
    encode_part(prefix, observed, scheme, recipe, piece)
    quantized = None
    if stream.quantized is None:
        rounded = _round(prefix, layer, inputs, weights, recipe)
    else:
        encodings = {name: piece.edges[f"{prefix}.{name}"] for name in observed}
        rounded, quantized = round_block(
            spec, layer, inputs, stream.quantized, past, encodings, weights, recipe.asymmetric, tick, stream.offsets
        )
    _keep(prefix, layer, rounded, weights, piece)
    if recipe.learn:
        names = [f"{name}.weight" for name in LINEARS]
        piece.real = {f"{prefix}.{name}": layer.get_parameter(name).data for name in names}
    _store_prefix(index, past, piece)
    return piece.cpu(), Stream(content, next_prefix, quantized, stream.offsets)


def weight_encodings(prefix: str, scheme: QuantScheme, promoted: Collection[str]) -> dict[str, WeightEncoding]:
    """Encoding of every linear of the block at `prefix`, by its path in the block."""
    plain = WeightEncoding(bits=scheme.weight_bits, narrow=scheme.narrow_weights)
    wide = WeightEncoding(bits=PROMOTED_BITS)
    return {name: wide if f"{prefix}.{name}.weight" in promoted else plain for name in LINEARS}


def encode_part(
    prefix: str, observed: dict[str, ObservedEdge], scheme: QuantScheme, recipe: Recipe, piece: Piece
) -> None:
    """Encodings and SQNR of observed edges, under their canonical names."""
    rows = piece.report.setdefault("edges", {})
    for name, edge in observed.items():
        path = f"{prefix}.{name}" if prefix else name
        encoding = encode_edge(edge, scheme, recipe.ranges, recipe.headroom)
        piece.edges[path] = encoding
        if edge.role != "constant":
            rows[path] = edge_facts(edge, encoding)


def _smooth(
    spec: ModelSpec,
    index: int,
    layer: DecoderLayer,
    stream: Stream,
    past: LayerCache,
    scheme: QuantScheme,
    weights: Mapping[str, WeightEncoding],
    recipe: Recipe,
    piece: Piece,
    tick: Callable[[], None],
) -> None:
    originals = dict(named_edges(layer))
    rows = stream.content.shape[0] * stream.content.shape[1]
    captured = capture(layer, rows, f"layers.{index}")
    for _ in run_content(spec, layer, stream.content, past, tick, stream.offsets):
        pass
    choices = choose_and_apply(layer, captured, scheme, weights, recipe.alphas, search=recipe.smoothing == "search")
    replace_edges(layer, lambda name, edge: originals[name])
    for choice in choices:
        if choice.scale is not None:
            named = site_factors(choice.site, choice.scale, spec)
            piece.factors |= {f"layers.{index}.{name}": factor for name, factor in named.items()}
    piece.report["smoothing"] = [
        {"site": c.site, "alpha": c.alpha, "error": c.error, "error_before": c.error_before} for c in choices
    ]


def _observe_prefix(layer: DecoderLayer, past: LayerCache) -> None:
    """The cache's encodings must hold the prefix's rows too."""
    if past[0].shape[2] == 0:
        return
    for edge, rows in ((layer.attn.k_out, past[0]), (layer.attn.v_out, past[1])):
        assert isinstance(edge, ObservedEdge)
        edge.statistics.update(rows, 1, edge.path)


def _round(
    prefix: str,
    layer: DecoderLayer,
    inputs: dict[str, InputMean],
    weights: Mapping[str, WeightEncoding],
    recipe: Recipe,
) -> dict[str, Rounded]:
    rounded: dict[str, Rounded] = {}
    for group in GROUPS:
        importance = inputs[group[0]].mean if recipe.weights != "nearest" else None
        for name in group:
            weight = layer.get_parameter(f"{name}.weight")
            rounded[name] = quantize_weight(f"{prefix}.{name}.weight", weight, weights[name], importance)
    return rounded


def _keep(
    prefix: str, layer: DecoderLayer, rounded: dict[str, Rounded], weights: Mapping[str, WeightEncoding], piece: Piece
) -> None:
    errors = piece.report.setdefault("weights", {})
    for name, module in layer.named_modules():
        path = f"{prefix}.{name}"
        if isinstance(module, Linear):
            integers, scale = rounded[name]
            piece.tensors[f"{path}.weight"], piece.tensors[f"{path}.weight.scale"] = integers, scale
            piece.weights[f"{path}.weight"] = weights[name]
            errors[f"{path}.weight"] = rounding_facts(module.weight, integers, scale)
        elif isinstance(module, Norm):
            piece.tensors[f"{path}.weight"] = module.weight.data.clone()
        if isinstance(module, (Linear, Norm)) and module.bias is not None:
            piece.tensors[f"{path}.bias"] = module.bias.data.clone()


def _store_prefix(index: int, past: LayerCache, piece: Piece) -> None:
    """The prefix's K/V as integers of the cache's own grid."""
    if past[0].shape[2] == 0:
        return
    for kind, rows in (("key", past[0]), ("value", past[1])):
        encoding = piece.edges[f"layers.{index}.attn.{kind[0]}_out"]
        piece.tensors[f"prefix.{index}.{kind}"] = integers_of(rows, encoding)
