"""How many bytes a model's weights take: integers packed at their own bits, and a float32 scale a row."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.layers import Linear
from mobileicsa.models.load import empty_weights
from mobileicsa.quantize.feedback import LINEARS

SCALE_BYTES = 4
PROMOTED_BITS = 8


def weight_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(out, in) of every quantised weight by name; a tied head has none of its own."""
    with empty_weights():
        decoder = Decoder(spec, primitive=False)
    found = {f"{name}.weight": linear.weight for name, linear in decoder.named_modules() if isinstance(linear, Linear)}
    found["embed.weight"] = decoder.embed.weight
    if spec.tied_head:
        del found["head.proj.weight"]
    return {name: (weight.shape[0], weight.shape[1]) for name, weight in found.items()}


def weight_bytes(shape: tuple[int, int], bits: int) -> int:
    """Bytes of one weight (out, in)."""
    rows, columns = shape
    return -(-rows * columns * bits // 8) + rows * SCALE_BYTES


def packed_bytes(spec: ModelSpec, bits: Mapping[str, int]) -> int:
    """Bytes of all weights of a model, of given bits by name."""
    return sum(weight_bytes(shape, bits[name]) for name, shape in weight_shapes(spec).items())


def promotable(spec: ModelSpec) -> list[str]:
    """Names of the weights whose bits may be chosen: the linears of the blocks."""
    return [f"layers.{index}.{name}.weight" for index in range(spec.num_layers) for name in LINEARS]


def bits_of(spec: ModelSpec, scheme: QuantScheme, promoted: Collection[str] = ()) -> dict[str, int]:
    """Bits of every weight by name, those of `promoted` raised."""
    bits = dict.fromkeys(weight_shapes(spec), scheme.head_bits) | {"embed.weight": scheme.embedding_bits}
    bits |= dict.fromkeys(promotable(spec), scheme.weight_bits)
    return bits | dict.fromkeys(promoted, PROMOTED_BITS)
