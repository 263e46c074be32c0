"""Equivalent scaling on a decoder block: which pairs there are, and the strength of each chosen by measured error.

Sites (MobileQuant's LET pairs): norm -> q/k/v, norm -> gate/up, up -> down, v -> o (one scale per key/value channel,
shared by the query heads of a group, so that grouped-query models have it too).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mobileicsa.calibrate.statistics import fake_quantize, finite_range
from mobileicsa.core.encoding import activation
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import DecoderLayer
from mobileicsa.models.edge import Edge
from mobileicsa.models.layers import Linear, Norm
from mobileicsa.models.product import linear
from mobileicsa.quantize.equivalent_math import relative_error, repeat_groups, smoothing_scale, tie_groups
from mobileicsa.quantize.rounding import fake_quantize_weight

# Rows kept of each captured activation: enough for a stable error, little enough to try many strengths.
CAPTURE_ROWS = 1536
SITES = ("attention", "mlp", "value", "product")


class CaptureEdge(Edge):
    """Passes its tensor through; keeps strided rows, and the range of every channel over all rows."""

    def __init__(self, edge: Edge, path: str, expected_rows: int, channels_first: bool = False) -> None:
        super().__init__(edge.role, edge.fixed)
        self.path = path
        self.stride = max(1, expected_rows // CAPTURE_ROWS)
        self.channels_first = channels_first
        self.kept: list[Tensor] = []
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def store(self, x: Tensor) -> Tensor:
        # Keys and values arrive as (B, heads, T, d): their channels are heads x d.
        rows = x.transpose(1, 2).flatten(2) if self.channels_first else x
        rows = rows.reshape(-1, rows.shape[-1])
        self.kept.append(rows[:: self.stride].clone())
        low, high = torch.aminmax(rows, dim=0)
        finite_range(torch.cat((low, high)), self.path)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        return x

    @property
    def rows(self) -> Tensor:
        return torch.cat(self.kept)

    @property
    def magnitude(self) -> Tensor:
        assert self.low is not None
        assert self.high is not None
        return torch.maximum(self.low.abs(), self.high.abs())

    def quantized(self, rows: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
        """rows / scale on the per-tensor grid that all calibration rows would need after scaling."""
        bits = scheme.bits(self.role, self.path)
        assert self.low is not None
        assert self.high is not None
        encoding = activation(float((self.low / scale).min()), float((self.high / scale).max()), bits)
        return fake_quantize(rows / scale, encoding)


@dataclass(frozen=True)
class Choice:
    """What was chosen at one site: strength and scale None mean left alone."""

    site: str
    alpha: float | None
    error: float
    error_before: float
    scale: Tensor | None


def site_factors(site: str, scale: Tensor, spec: ModelSpec) -> dict[str, Tensor]:
    """By which factors a scale of a site multiplies a layer's linears: `<path>.in` columns, `<path>.out` rows."""
    if site == "value":
        wide = repeat_groups(scale, spec.num_heads, spec.num_kv_heads)
        return {"attn.v_proj.out": 1.0 / scale, "attn.o_proj.in": wide}
    if site == "product":
        return {"mlp.up_proj.out": 1.0 / scale, "mlp.down_proj.in": scale}
    attention = ("attn.q_proj", "attn.k_proj", "attn.v_proj") if site == "attention" else ()
    inner = ("mlp.gate_proj", "mlp.up_proj") if site == "mlp" or spec.parallel_residual else ()
    return {f"{name}.in": scale for name in attention + inner}


def capture(layer: DecoderLayer, expected_rows: int, path: str) -> dict[str, CaptureEdge]:
    """Replace the edges that the sites read by capturing ones (in place); returns them by short name."""
    found: dict[str, CaptureEdge] = {}

    def put(name: str, edge: str, channels_first: bool = False) -> None:
        module, _, attribute = edge.rpartition(".")
        owner = layer.get_submodule(module)
        found[name] = CaptureEdge(getattr(owner, attribute), f"{path}.{edge}", expected_rows, channels_first)
        setattr(owner, attribute, found[name])

    if layer.spec.pre_norm:
        put("attn_in", "attn_norm.out")
        if not layer.spec.parallel_residual:
            put("mlp_in", "mlp_norm.out")
    put("value", "attn.v_out", channels_first=True)
    put("mixed", "attn.out")
    put("activation", "mlp.activation.out")
    put("up", "mlp.up_proj.out")
    put("product", "mlp.product")
    return found


def choose_and_apply(
    layer: DecoderLayer,
    captured: dict[str, CaptureEdge],
    scheme: QuantScheme,
    weights: Mapping[str, WeightEncoding],
    alphas: Sequence[float],
    *,
    search: bool,
) -> list[Choice]:
    """Scale the block's weights in place, site by site.

    `search` tries no scaling and every alpha and keeps the least output error of the site's consumers under the
    scheme's own rounding; without it the first alpha is applied as SmoothQuant does (norm sites only). `weights`: the
    encoding of each linear, by its path in the block.
    """
    spec = layer.spec
    choices: list[Choice] = []
    for site in SITES:
        plan = _site(site, layer, captured, spec, scheme, weights)
        if plan is None or (not search and site in ("value", "product")):
            continue
        magnitude, readers, error_of, apply = plan
        ones = torch.ones_like(magnitude)
        before = error_of(ones)
        best, best_alpha, best_error = ones, None, before
        for alpha in alphas:
            scale = smoothing_scale(magnitude, readers, alpha)
            error = error_of(scale)
            if error < best_error or not search:
                best, best_alpha, best_error = scale, alpha, error
            if not search:
                break
        if best_alpha is not None:
            apply(best)
        choices.append(Choice(site, best_alpha, best_error, before, None if best_alpha is None else best))
    return choices


_Site = tuple[Tensor, Tensor, Callable[[Tensor], float], Callable[[Tensor], None]]


def _site(
    site: str,
    layer: DecoderLayer,
    captured: dict[str, CaptureEdge],
    spec: ModelSpec,
    scheme: QuantScheme,
    weights: Mapping[str, WeightEncoding],
) -> _Site | None:
    """(activation magnitudes, reading weights' magnitudes, error of a scale, apply a scale) of one site."""
    attn, mlp = layer.attn, layer.mlp
    inner = {"mlp.gate_proj": mlp.gate_proj, "mlp.up_proj": mlp.up_proj}
    if site == "attention" and "attn_in" in captured:
        readers = {"attn.q_proj": attn.q_proj, "attn.k_proj": attn.k_proj, "attn.v_proj": attn.v_proj}
        if spec.parallel_residual:
            readers |= inner
        return _norm_site(layer.attn_norm, readers, captured["attn_in"], scheme, weights)
    if site == "mlp" and "mlp_in" in captured:
        return _norm_site(layer.mlp_norm, inner, captured["mlp_in"], scheme, weights)
    if site == "value":
        return _value_site(layer, captured, spec, scheme, weights["attn.o_proj"])
    if site == "product":
        return _product_site(layer, captured, scheme, weights["mlp.down_proj"])
    return None


def _norm_site(
    norm: Norm,
    linears: Mapping[str, Linear],
    edge: CaptureEdge,
    scheme: QuantScheme,
    weights: Mapping[str, WeightEncoding],
) -> _Site:
    rows = edge.rows
    readers, encodings = list(linears.values()), [weights[name] for name in linears]
    references = [linear(rows, reader.weight) for reader in readers]

    def error_of(scale: Tensor) -> float:
        x = edge.quantized(rows, scale, scheme)
        return sum(
            relative_error(linear(x, fake_quantize_weight(reader.weight * scale, encoding)), reference)
            for reader, encoding, reference in zip(readers, encodings, references, strict=True)
        )

    def apply(scale: Tensor) -> None:
        norm.weight.data = norm.weight / scale
        if norm.bias is not None:
            norm.bias.data = norm.bias / scale
        for reader in readers:
            reader.weight.data = reader.weight * scale

    column_max = torch.stack([reader.weight.abs().amax(dim=0) for reader in readers]).amax(dim=0)
    return edge.magnitude, column_max, error_of, apply


def _value_site(
    layer: DecoderLayer, captured: dict[str, CaptureEdge], spec: ModelSpec, scheme: QuantScheme, weight: WeightEncoding
) -> _Site:
    value, mixed = captured["value"], captured["mixed"]
    v_proj, o_proj = layer.attn.v_proj, layer.attn.o_proj
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    v_rows, rows = value.rows, mixed.rows
    reference = linear(rows, o_proj.weight)

    def error_of(scale: Tensor) -> float:
        wide = repeat_groups(scale, heads, kv_heads)
        x = mixed.quantized(rows, wide, scheme)
        output_error = relative_error(linear(x, fake_quantize_weight(o_proj.weight * wide, weight)), reference)
        return output_error + relative_error(value.quantized(v_rows, scale, scheme) * scale, v_rows)

    def apply(scale: Tensor) -> None:
        v_proj.weight.data = v_proj.weight / scale[:, None]
        if v_proj.bias is not None:
            v_proj.bias.data = v_proj.bias / scale
        o_proj.weight.data = o_proj.weight * repeat_groups(scale, heads, kv_heads)

    column_max = tie_groups(o_proj.weight.abs().amax(dim=0), heads, kv_heads)
    return value.magnitude, column_max, error_of, apply


def _product_site(
    layer: DecoderLayer, captured: dict[str, CaptureEdge], scheme: QuantScheme, weight: WeightEncoding
) -> _Site:
    up, product, activation = captured["up"], captured["product"], captured["activation"].rows
    up_proj, down_proj = layer.mlp.up_proj, layer.mlp.down_proj
    reference = linear(product.rows, down_proj.weight)

    def error_of(scale: Tensor) -> float:
        # The up projection's own 8-bit output is part of the price.
        u = up.quantized(up.rows, scale, scheme)
        x = product.quantized(activation * u * scale, scale, scheme)
        return relative_error(linear(x, fake_quantize_weight(down_proj.weight * scale, weight)), reference)

    def apply(scale: Tensor) -> None:
        up_proj.weight.data = up_proj.weight / scale[:, None]
        if up_proj.bias is not None:
            up_proj.bias.data = up_proj.bias / scale
        down_proj.weight.data = down_proj.weight * scale

    return product.magnitude, down_proj.weight.abs().amax(dim=0), error_of, apply
