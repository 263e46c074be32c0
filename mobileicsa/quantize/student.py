"""The student: a quantised decoder whose ranges, scales, gains, weights and equivalent scalings are parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobileicsa.calibrate.statistics import integers_of, values_of
from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.plan import QuantPlan
from mobileicsa.models.decoder import Decoder, DecoderLayer, LayerCache
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.models.layers import Linear, Norm
from mobileicsa.models.load import empty_weights
from mobileicsa.models.placed import PlacedWindows
from mobileicsa.quantize.recipe import Learning
from mobileicsa.quantize.rounding import real_weight
from mobileicsa.quantize.student_layers import FixedLinear, GainEdge, RangeEdge, StudentLinear
from mobileicsa.quantize.student_sites import attach_scalings

# Weights that are no linear of a student.
TABLES = ("embed.weight", "head.proj.weight")


@dataclass(frozen=True)
class Base:
    """A quantised model and, by name, the real-valued linear weights (out, in) behind its integers.

    `means`: the float linears' mean outputs (out,), in the units of this model's, where biases will be corrected.
    `factors`: by what equivalent scalings multiplied the linears so far (see quantize/basis.py).
    """

    plan: QuantPlan
    tensors: dict[str, Tensor]
    real: dict[str, Tensor]
    means: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)


class Student(nn.Module):
    """Decoder (fused form) with learnable quantisation, and the prefix's keys and values as parameters."""

    def __init__(self, base: Base, learning: Learning) -> None:
        super().__init__()
        plan = base.plan
        with empty_weights():
            decoder = Decoder(plan.spec, primitive=False)
        replace_edges(decoder, lambda name, edge: _edge(name, edge, plan, learning))
        for name, module in list(decoder.named_modules()):
            if isinstance(module, Linear):
                _set_linear(decoder, name, module, base, learning)
            elif isinstance(module, Norm):
                module.weight = nn.Parameter(base.tensors[f"{name}.weight"].clone())
                if module.bias is not None:
                    module.bias = nn.Parameter(base.tensors[f"{name}.bias"].clone(), requires_grad=False)
        decoder.embed.weight = nn.Parameter(real_weight(base.tensors, "embed.weight"), requires_grad=False)
        table = decoder.embed.weight
        if not plan.spec.tied_head:
            table = nn.Parameter(real_weight(base.tensors, "head.proj.weight"), requires_grad=False)
        decoder.head.proj = FixedLinear(decoder.head.proj, table, _bias(base, "head.proj"))
        self.decoder = decoder
        self.prefix = nn.ParameterList(_prefix_rows(base))
        self._known_positions: dict[tuple[int, torch.device], PlacedWindows] = {}
        # By layer and site; empty where equivalent scalings do not learn.
        self.scalings = [attach_scalings(layer) for layer in self.layers] if learning.lr_equivalent else []

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoder.layers if isinstance(layer, DecoderLayer)]

    def past(self, index: int, batch: int) -> LayerCache:
        """The prefix's rows of one layer as the cache stores them, for `batch` windows; no rows without a prefix."""
        spec, attn = self.decoder.spec, self.layers[index].attn
        if not len(self.prefix):
            empty = torch.zeros((batch, spec.num_kv_heads, 0, spec.head_dim), device=self.device)
            return empty, empty
        keys = attn.k_out(_divide(self.prefix[2 * index], attn.k_proj))
        values = attn.v_out(_divide(self.prefix[2 * index + 1], attn.v_proj))
        return keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)

    def run_layer(self, index: int, x: Tensor, offsets: Tensor) -> Tensor:
        """x (B, T, hidden) through one block, each `offsets` (B,) positions further on than right behind the prefix."""
        layer = self.layers[index]
        ropes, masks = self._placed(x.shape[1]).at(offsets)
        rope = None if layer.layer.rope is None else ropes[layer.layer.rope]
        y: Tensor = layer(x, rope, masks[layer.layer.sliding_window], self.past(index, x.shape[0]))[0]
        return y

    def _placed(self, length: int) -> PlacedWindows:
        """Positions of `length` tokens behind the prefix; made once, for every layer and step."""
        key = length, self.device
        if key not in self._known_positions:
            start = self.prefix[0].shape[2] if len(self.prefix) else 0
            self._known_positions[key] = PlacedWindows(self.decoder.spec, start, *key)
        return self._known_positions[key]

    def hidden(self, ids: Tensor, offsets: Tensor | None = None, *, save_memory: bool = False) -> Tensor:
        """Last layer's output (B, T, hidden) for ids (B, T), each `offsets` (B,) positions further on (None: 0).

        `save_memory` computes blocks again for their gradient.
        """
        if offsets is None:
            offsets = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        x: Tensor = self.decoder.embed(ids)
        for index in range(len(self.decoder.layers)):
            if save_memory:
                x = checkpoint(self.run_layer, index, x, offsets, use_reentrant=False)
            else:
                x = self.run_layer(index, x, offsets)
        return x

    @torch.no_grad()
    def freeze(self, base: Base) -> Base:
        """The model as it is now; what the student does not hold stays `base`'s."""
        edges, tensors, real = dict(base.plan.edges), dict(base.tensors), dict(base.real)
        means, factors = dict(base.means), dict(base.factors)
        for name, module in self.decoder.named_modules():
            if isinstance(module, RangeEdge):
                edges[name] = module.encoding()
            elif isinstance(module, Norm):
                for edge_name, label in (("gain", "weight"), ("shift", "bias")):
                    value, edge = getattr(module, label), getattr(module, edge_name, None)
                    if value is not None and isinstance(edge, GainEdge):
                        tensors[f"{name}.{label}"] = edge.value(value.detach())
                        edges[f"{name}.{edge_name}"] = edge.encoding(tensors[f"{name}.{label}"])
            elif isinstance(module, StudentLinear):
                codes, scale = module.rounded()
                key = f"{name}.weight"
                tensors[key], tensors[f"{key}.scale"], real[key] = codes.to(torch.int8), scale, module.real()
                bias = module.effective_bias()
                if bias is not None:
                    tensors[f"{name}.bias"] = bias.detach()
                if name in means and module.rows is not None:
                    means[name] = means[name] / module.rows()
                for side, factor in module.factors().items():
                    known = factors.get(f"{name}.{side}")
                    factors[f"{name}.{side}"] = factor if known is None else known * factor
        for index in range(base.plan.spec.num_layers if base.plan.prefix_ids else 0):
            for kind, rows in zip(("key", "value"), self.past(index, 1), strict=True):
                encoding = edges[f"layers.{index}.attn.{kind[0]}_out"]
                tensors[f"prefix.{index}.{kind}"] = integers_of(rows, encoding)
        return Base(replace(base.plan, edges=edges), tensors, real, means, factors)


def settled(plan: QuantPlan, tensors: dict[str, Tensor]) -> Student:
    """The model as it is, nothing of it learning: its real weights, gone where nothing learned, are not read."""
    integers = {name: tensors[name] for name in plan.weights if name not in TABLES}
    return Student(Base(plan, tensors, integers), Learning())


def _edge(name: str, edge: Edge, plan: QuantPlan, learning: Learning) -> Edge:
    if edge.role == "derived":
        return edge
    if edge.role == "constant":
        return GainEdge(edge)
    learns = bool(learning.lr_ranges) and plan.scheme.bits(edge.role, name) == 8 and edge.fixed is None
    return RangeEdge(edge, plan.edges[name], plan.scheme.mantissa_bits(edge.role, name), learns=learns)


def _set_linear(decoder: Decoder, name: str, linear: Linear, base: Base, learning: Learning) -> None:
    key = f"{name}.weight"
    if key not in base.real:  # the vocabulary projection, often the embedding's table
        return
    linear.bias = _bias(base, name)
    rounded = (base.tensors[key], base.tensors[f"{key}.scale"])
    student = StudentLinear(linear, rounded, base.real[key], base.plan.weights[key], learning.weights)
    parent, _, attribute = name.rpartition(".")
    setattr(decoder.get_submodule(parent), attribute, student)


def _bias(base: Base, name: str) -> nn.Parameter | None:
    bias = base.tensors.get(f"{name}.bias")
    return None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)


def _prefix_rows(base: Base) -> Iterator[nn.Parameter]:
    if not base.plan.prefix_ids:
        return
    for index in range(base.plan.spec.num_layers):
        for kind in ("key", "value"):
            encoding: TensorEncoding = base.plan.edges[f"layers.{index}.attn.{kind[0]}_out"]
            yield nn.Parameter(values_of(base.tensors[f"prefix.{index}.{kind}"], encoding), requires_grad=False)


def _divide(rows: Tensor, projection: nn.Module) -> Tensor:
    """Prefix rows (1, kv_heads, P, head_dim) under the scaling of the projection that would have made them."""
    if not isinstance(projection, StudentLinear) or projection.rows is None:
        return rows
    factors: Tensor = projection.rows()
    return rows / factors.view(1, rows.shape[1], 1, rows.shape[3])
