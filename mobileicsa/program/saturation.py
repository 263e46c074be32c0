"""What an adapter does to the base's ranges: values of every encoded edge that saturate, with and without it.

The base's activation ranges were set without the adapter. Text goes through the fused simulator with it, and every
edge counts the values that lie farther than half a step outside of its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mobileicsa.models.decoder import LayerCache
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.program.adapters import PlanAdapter, Update, padded, updates, use
from mobileicsa.program.frozen import FrozenModel, build_adapted
from mobileicsa.program.qdq import QdqEdge
from mobileicsa.program.simulator import prepare_for_eager, sequence_logits


class MeteredEdge(Edge):
    """A quantising edge that counts what it saturates."""

    def __init__(self, edge: QdqEdge) -> None:
        super().__init__(edge.role, edge.fixed)
        self.edge = edge
        half = edge.encoding.scale[0] / 2
        low, high = edge.encoding.real_range()
        self.low, self.high = low - half, high + half
        self.outside = self.total = 0

    def _count(self, x: Tensor) -> None:
        self.outside += int(((x < self.low) | (x > self.high)).sum())
        self.total += x.numel()

    def forward(self, x: Tensor) -> Tensor:
        self._count(x)
        return self.edge(x)

    def store(self, x: Tensor) -> Tensor:
        self._count(x)
        return self.edge.store(x)

    def load(self, x: Tensor) -> Tensor:
        return self.edge.load(x)


class UpdateRanges:
    """Forward hook of an `Update` in float: the largest |x a| of each rank, and the ends of x a b."""

    def __init__(self) -> None:
        self.inner: Tensor | None = None
        self.low = self.high = 0.0

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, Tensor], output: Tensor) -> None:
        assert isinstance(module, Update)
        a, b = (factor.to(arguments[0].dtype) for factor in module.held)
        inner = torch.matmul(arguments[0], a)
        largest = inner.abs().flatten(0, -2).amax(dim=0)
        self.inner = largest if self.inner is None else torch.maximum(self.inner, largest)
        low, high = torch.aminmax(torch.matmul(inner, b))
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))


def saturated(
    model: FrozenModel,
    adapter: PlanAdapter | None,
    windows: Sequence[Sequence[int]],
    past: list[LayerCache] | None,
    tick: Callable[[], None],
) -> tuple[dict[str, float], dict[str, UpdateRanges]]:
    """The share of each edge's values that saturate on `windows` behind `past`, and what each update gives there.

    Edges whose range is known beforehand saturate by design and are left out. `tick` is called once a window.
    """
    decoder = build_adapted(model, [] if adapter is None else [adapter], primitive=False)
    prepare_for_eager(decoder)
    seen = {name.removesuffix(".lora"): UpdateRanges() for name in updates(decoder)}
    for name, update in updates(decoder).items():
        update.register_forward_hook(seen[name.removesuffix(".lora")])
    meters: dict[str, MeteredEdge] = {}

    def meter(name: str, edge: Edge) -> Edge:
        if not isinstance(edge, QdqEdge) or edge.fixed is not None:
            return edge
        meters[name] = MeteredEdge(edge)
        return meters[name]

    replace_edges(decoder, meter)
    use(decoder, None if adapter is None else padded(adapter, decoder))
    with torch.no_grad():
        for window in windows:
            for _ in sequence_logits(decoder, window, past):
                pass
            tick()
    return {name: edge.outside / edge.total for name, edge in meters.items() if edge.total}, seen
