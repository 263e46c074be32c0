"""Edges grouped by site: the same place in every layer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
# The order in which data passes a block; report.json keeps its keys sorted by name.
_FLOW = (
    *("attn_norm.out", "attn_in", "attn.q_proj.out", "attn.k_proj.out", "attn.q_norm.out", "attn.k_norm.out"),
    *("attn.q_out", "attn.k_out", "attn.v_out", "attn.scores", "attn.softmax.out", "attn.out", "attn.o_proj.out"),
    *("attn_post_norm.out", "middle", "mlp_norm.out", "mlp_in", "mlp.gate_proj.out", "mlp.activation.sigmoid"),
    *("mlp.activation.out", "mlp.up_proj.out", "mlp.product", "mlp.down_proj.out", "mlp_post_norm.out", "branches"),
    "out",
)


@dataclass
class Site:
    """`layers[i]` is the layer of `edges[i]`; role and bits are those of the first layer."""

    name: str
    role: str
    bits: int
    layers: list[int] = field(default_factory=list)
    edges: list[dict[str, Any]] = field(default_factory=list)


def layer_sites(edges: dict[str, Any]) -> list[Site]:
    """Sites inside layers, in the order in which data passes them; their layers ascend."""
    found: dict[tuple[str, int], Site] = {}
    matches = ((_LAYER.fullmatch(path), edge) for path, edge in edges.items())
    inside = [(int(match[1]), match[2], edge) for match, edge in matches if match is not None]
    for layer, name, edge in sorted(inside, key=lambda item: item[0]):
        # A site whose width differs between layers shows up once for each.
        site = found.setdefault((name, edge["bits"]), Site(name, edge["role"], edge["bits"]))
        site.layers.append(layer)
        site.edges.append(edge)
    order = {name: position for position, name in enumerate(_FLOW)}
    return sorted(found.values(), key=lambda site: (order.get(site.name, len(order)), site.name))


def worst_edges(edges: dict[str, Any], count: int) -> list[tuple[str, dict[str, Any]]]:
    """Edges with the least signal-to-noise ratio; inner edges of norm, softmax and RoPE are left out."""
    ranked = [(path, e) for path, e in edges.items() if e["role"] != "internal" and e["sqnr_db"] is not None]
    return sorted(ranked, key=lambda item: item[1]["sqnr_db"])[:count]
