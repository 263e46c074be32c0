"""Edges grouped by site: the same place in every layer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass
class Site:
    """`layers[i]` is the layer of `edges[i]`; role and bits are those of the first layer."""

    name: str
    role: str
    bits: int
    layers: list[int] = field(default_factory=list)
    edges: list[dict[str, Any]] = field(default_factory=list)


def layer_sites(edges: dict[str, Any]) -> list[Site]:
    """Sites inside layers, in the order in which data passes them."""
    found: dict[tuple[str, int], Site] = {}
    for path, edge in edges.items():
        match = _LAYER.fullmatch(path)
        if match is None:
            continue
        name = match.group(2)
        # A site whose width differs between layers shows up once for each.
        site = found.setdefault((name, edge["bits"]), Site(name, edge["role"], edge["bits"]))
        site.layers.append(int(match.group(1)))
        site.edges.append(edge)
    return list(found.values())


def worst_edges(edges: dict[str, Any], count: int) -> list[tuple[str, dict[str, Any]]]:
    """Edges with the least signal-to-noise ratio; inner edges of norm, softmax and RoPE are left out."""
    ranked = [(path, e) for path, e in edges.items() if e["role"] != "internal" and e["sqnr_db"] is not None]
    return sorted(ranked, key=lambda item: item[1]["sqnr_db"])[:count]
