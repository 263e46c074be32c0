"""Encodings that follow from others: RoPE tables, masks, the embedding's row scales. Primitive programs read them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mobileicsa.core.encoding import TensorEncoding, activation
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.layers import SOFTMAX_FLOOR

BITS = 16


def derived_edges(spec: ModelSpec, edges: Mapping[str, TensorEncoding], row_scale: Tensor) -> dict[str, TensorEncoding]:
    """Encoding of every edge of role "derived".

    `edges`: the plan's others, of which each layer's `attn.scores` is read; `row_scale` (vocab,): the embedding's.
    """
    found: dict[str, TensorEncoding] = {
        "embed.codes": TensorEncoding(bits=8, scale=(1.0,), zero_point=(0,)),
        "embed.row_scales": activation(0.0, float(row_scale.max()) * spec.embed_scale, BITS),
    }
    for index, rope in enumerate(spec.ropes):
        found[f"rope_tables.{index}"] = activation(-rope.attention_factor, rope.attention_factor, BITS, 0)
    deepest = 0.0
    for index in range(spec.num_layers):
        low, high = edges[f"layers.{index}.attn.scores"].real_range()
        masked = activation(low + SOFTMAX_FLOOR, high, BITS, 0)
        found[f"layers.{index}.attn.softmax.masked"] = found[f"layers.{index}.attn.softmax.maximum"] = masked
        deepest = min(deepest, masked.real_range()[0] - high)
    # One mask for all layers: added to the largest score of any, it saturates that layer's masked scores.
    found["mask"] = activation(deepest, 0.0, BITS, 0)
    return found
