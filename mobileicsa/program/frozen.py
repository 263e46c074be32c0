"""`FrozenModel`: a plan with its integers, and the quantised decoder built from the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobileicsa.core.errors import SchemeError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.models.decoder import Decoder, LayerCache
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.models.layers import Linear, Norm
from mobileicsa.models.load import empty_weights
from mobileicsa.program.adapters import PlanAdapter, Room, attach, room_for
from mobileicsa.program.qdq import QdqEdge, QuantEmbedding, QuantLinear
from mobileicsa.program.reads import input_scale


@dataclass(frozen=True)
class FrozenModel:
    """`tensors`: for each name in `plan.weights` integers `name` (int8) and `name.scale` (float32, per row);
    float32 biases and norm gains by their canonical names; `prefix.<layer>.key|value` int8
    (1, kv_heads, P, head_dim) and `prefix.logits` float32 (vocab,).
    """

    plan: QuantPlan
    tensors: dict[str, Tensor]

    def prefix_cache(self) -> list[LayerCache]:
        """Stored K/V rows of the prefix, one pair a layer; empty rows where there is no prefix."""
        spec = self.plan.spec
        if not self.plan.prefix_ids:
            empty = torch.zeros((1, spec.num_kv_heads, 0, spec.head_dim), dtype=torch.int8)
            return [(empty, empty) for _ in spec.layers]
        return [(self.tensors[f"prefix.{i}.key"], self.tensors[f"prefix.{i}.value"]) for i in range(spec.num_layers)]


def build_decoder(model: FrozenModel, *, primitive: bool, room: Room | None = None) -> Decoder:
    """The frozen program's module: every edge and weight quantised, or SchemeError naming what has no encoding.

    A tied head shares the embedding's integers. `room`: for adapters, whose factors are inputs.
    """
    plan = model.plan
    with torch.device("meta"):
        decoder = Decoder(plan.spec, primitive=primitive)

    def encode(name: str, edge: Edge) -> Edge:
        if edge.role == "derived" and not primitive:
            return edge
        encoding = plan.edges.get(name)
        if encoding is None:
            raise SchemeError(f"{name}: no encoding in the plan", hint="every edge must have one before freezing")
        return QdqEdge(edge, encoding)

    replace_edges(decoder, encode)
    _fill(decoder, model)
    for block in (*decoder.layers, decoder.head):
        for name, module in block.named_modules():
            if isinstance(module, QuantLinear):
                module.round_bias(input_scale(block, name), integers=primitive)
    if not primitive:
        _fold_constants(decoder)
    if room is not None:
        attach(decoder, room)
    left = [n for n, t in [*decoder.named_parameters(), *decoder.named_buffers()] if t.is_meta]
    if left:
        raise SchemeError(f"{left[0]}: no value in the frozen tensors ({len(left)} missing)")
    if plan.prefix_ids:
        decoder.prefix_rows = model.prefix_cache()
    return decoder.eval()


def build_adapted(model: FrozenModel, adapters: Sequence[PlanAdapter], *, primitive: bool) -> Decoder:
    """The frozen program's module with room for these adapters; the plain one where there are none."""
    room = room_for(model.plan, adapters, primitive=primitive) if adapters else None
    return build_decoder(model, primitive=primitive, room=room)


def real_decoder(model: FrozenModel, added: Mapping[str, Tensor]) -> Decoder:
    """The frozen weights as real numbers in the float decoder, nothing rounded; `added` (out, in) to its linears."""
    plan, tensors = model.plan, model.tensors
    with empty_weights():
        decoder = Decoder(plan.spec, primitive=False)
    state: dict[str, Tensor] = {}
    for name in decoder.state_dict():
        if name == "head.proj.weight" and plan.spec.tied_head:
            state[name] = state["embed.weight"]
        elif name in plan.weights:
            state[name] = tensors[name].to(torch.float32) * tensors[f"{name}.scale"][:, None]
        else:
            state[name] = tensors[name]
    for linear, update in added.items():
        state[f"{linear}.weight"] = state[f"{linear}.weight"] + update
    decoder.load_state_dict(state, assign=True)
    return decoder.eval()


def _fold_constants(decoder: Decoder) -> None:
    """Round constants (norm gains) to their grid now: a fused float region reads them as plain numbers."""
    for module in decoder.modules():
        if isinstance(module, Norm):
            module.weight = nn.Parameter(module.gain(module.weight), requires_grad=False)
            module.gain = Edge("constant")
            if module.bias is not None:
                module.bias = nn.Parameter(module.shift(module.bias), requires_grad=False)
                module.shift = Edge("constant")


def _fill(decoder: Decoder, model: FrozenModel) -> None:
    plan, tensors = model.plan, model.tensors
    for name, module in list(decoder.named_modules()):
        if isinstance(module, Linear):
            tied = name == "head.proj" and plan.spec.tied_head
            weight_name = "embed.weight" if tied else f"{name}.weight"
            _set_value(module, "bias", tensors.get(f"{name}.bias"))
            integers, scale = _integers(model, weight_name, module.weight)
            _set_module(decoder, name, QuantLinear(module, integers, scale, plan.weights[weight_name]))
        elif isinstance(module, Norm):
            _set_value(module, "weight", tensors.get(f"{name}.weight"))
            _set_value(module, "bias", tensors.get(f"{name}.bias"))
    for module in decoder.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = _constant_value(module, key)
    table = _integers(model, "embed.weight", decoder.embed.weight)
    decoder.embed = QuantEmbedding(decoder.embed, *table, plan.weights["embed.weight"])


def _integers(model: FrozenModel, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and scales of one weight; SchemeError where they are missing or do not fit the model."""
    if name not in model.plan.weights:
        raise SchemeError(f"{name}: no encoding in the plan", hint="every weight must have one before freezing")
    for key, shape in ((name, weight.shape), (f"{name}.scale", weight.shape[:1])):
        found = model.tensors.get(key)
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"has shape {list(found.shape)}, not {list(shape)}"
            raise SchemeError(f"{key}: {what} in the frozen tensors")
    return model.tensors[name], model.tensors[f"{name}.scale"]


def _constant_value(module: nn.Module, key: str) -> Tensor:
    values = {
        "inverse_size": lambda m: 1.0 / m.size,
        "epsilon": lambda m: m.eps,
        "inverse_cap": lambda m: 1.0 / m.cap,
        "cap_value": lambda m: m.cap,
    }
    return torch.tensor(float(values[key](module)))


def _set_value(module: nn.Module, attribute: str, value: Tensor | None) -> None:
    if value is not None:
        setattr(module, attribute, nn.Parameter(value, requires_grad=False))


def _set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, attribute = path.rpartition(".")
    setattr(root.get_submodule(parent), attribute, module)
