"""Which edge's integers each linear reads."""

from __future__ import annotations

from torch import nn

from mobileicsa.models.edge import named_edges
from mobileicsa.program.qdq import QdqEdge

# By the linear's attribute path inside its block; the first edge that exists.
_READS = {
    "attn.q_proj": ("attn_norm.out", "attn_in"),
    "attn.k_proj": ("attn_norm.out", "attn_in"),
    "attn.v_proj": ("attn_norm.out", "attn_in"),
    "attn.o_proj": ("attn.out",),
    "mlp.gate_proj": ("mlp_norm.out", "mlp_in", "attn_norm.out"),
    "mlp.up_proj": ("mlp_norm.out", "mlp_in", "attn_norm.out"),
    "mlp.down_proj": ("mlp.product",),
    "mix": ("norm.out",),  # of the head, as is the next
    "proj": ("mix.out", "norm.out"),
}


def input_scale(block: nn.Module, linear: str) -> float:
    """Scale of the encoded edge that a frozen block's linear (by its path inside the block) reads."""
    edges = dict(named_edges(block))
    edge = next(edges[path] for path in _READS[linear] if path in edges)
    assert isinstance(edge, QdqEdge)
    return edge.encoding.scale[0]
