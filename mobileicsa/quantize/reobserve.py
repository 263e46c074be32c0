"""A learned model seen again: ranges of its 16-bit and inner edges, and facts of all of them for the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.device import compute_device
from mobileicsa.calibrate.statistics import ObservedEdge, fake_quantize, values_of
from mobileicsa.calibrate.stream import BATCH, run_content
from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.plan import QuantPlan
from mobileicsa.models.decoder import DecoderLayer, Embedding, Head, LayerCache
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.models.load import empty_weights
from mobileicsa.quantize.ranges import edge_facts, encode_edge
from mobileicsa.quantize.rounding import real_weight

Edges = dict[str, TensorEncoding]


class _SeenEdge(ObservedEdge):
    """Observes, then rounds to the grid that learning settled; None leaves the values as they are."""

    def __init__(self, edge: Edge, expected_updates: int, path: str, encoding: TensorEncoding | None) -> None:
        super().__init__(edge, expected_updates, path)
        self.encoding = encoding

    def store(self, x: Tensor) -> Tensor:
        super().store(x)
        return x if self.encoding is None else fake_quantize(x, self.encoding)


@torch.no_grad()
def observe_again(
    plan: QuantPlan, tensors: dict[str, Tensor], windows: Tensor, offsets: Tensor, tick: Callable[[], None]
) -> tuple[Edges, dict[str, Any]]:
    """The plan's edges, with new ranges where learning settled none, and a report row for each.

    windows (N, T) stand `offsets` (N,) positions further on than right behind the prefix. `tick` is called once a batch
    and layer.
    """
    spec, found, rows, device = plan.spec, dict(plan.edges), {}, compute_device()
    batches = -(-windows.shape[0] // BATCH)

    def watch(module: nn.Module, prefix: str) -> None:
        _fill(module, f"{prefix}.", tensors, spec.tied_head)
        module.to(device)

        def make(name: str, edge: Edge) -> Edge:
            path = f"{prefix}.{name}"
            if edge.role == "derived":
                return edge
            return _SeenEdge(edge, batches, path, _kept(edge, path, plan))

        replace_edges(module, make)

    def collect(module: nn.Module) -> None:
        for edge in module.modules():
            if isinstance(edge, _SeenEdge):
                if edge.encoding is None:
                    found[edge.path] = encode_edge(edge, plan.scheme, "mse")
                if edge.role != "constant":
                    rows[edge.path] = edge_facts(edge, found[edge.path])

    with empty_weights():
        embedding, head = Embedding(spec), Head(spec)
    watch(embedding, "embed")
    hidden = torch.cat([embedding(batch) for batch in torch.split(windows.to(device), BATCH)])
    offsets = offsets.to(device)
    collect(embedding)
    for index in range(spec.num_layers):
        layer = DecoderLayer(spec, index, primitive=True)
        watch(layer, f"layers.{index}")
        hidden = torch.cat(list(run_content(spec, layer, hidden, _past(plan, index, tensors, device), tick, offsets)))
        collect(layer)
    watch(head, "head")
    for batch in torch.split(hidden, BATCH):
        head(batch[:, ::4])
    collect(head)
    return found, rows


def _kept(edge: Edge, path: str, plan: QuantPlan) -> TensorEncoding | None:
    settled = plan.scheme.bits(edge.role, path) == 8 or edge.fixed is not None or edge.role == "constant"
    return plan.edges[path] if settled else None


def _fill(module: nn.Module, prefix: str, tensors: dict[str, Tensor], tied_head: bool) -> None:
    """The real values behind a part's frozen tensors."""
    for name, parameter in list(module.named_parameters()):
        key = "embed.weight" if tied_head and prefix + name == "head.proj.weight" else prefix + name
        value = real_weight(tensors, key) if f"{key}.scale" in tensors else tensors[key]
        owner, _, attribute = name.rpartition(".")
        assert value.shape == parameter.shape
        setattr(module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))


def _past(plan: QuantPlan, index: int, tensors: dict[str, Tensor], device: torch.device) -> LayerCache:
    if not plan.prefix_ids:
        empty = torch.zeros((1, plan.spec.num_kv_heads, 0, plan.spec.head_dim), device=device)
        return empty, empty
    keys, values = (
        values_of(tensors[f"prefix.{index}.{kind}"].to(device), plan.edges[f"layers.{index}.attn.{kind[0]}_out"])
        for kind in ("key", "value")
    )
    return keys, values
