"""Whether the sums of integer products fit the 32 bits that every kernel has."""

from __future__ import annotations

from mobileicsa.core.errors import SchemeError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.packed import PROMOTED_BITS

INT32_MAX = 2**31 - 1
ACTIVATION_STEPS = 255  # largest distance of an 8-bit integer from its zero point


def check_accumulators(spec: ModelSpec, scheme: QuantScheme, limits: Limits | None) -> None:
    """The largest sum of any linear must fit int32: K activations of at most 255 steps times the largest weight code.

    16-bit activations are summed a byte at a time, so that the same bound holds for them.
    """
    inner = max(spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim)
    plain = WeightEncoding(bits=scheme.weight_bits, narrow=scheme.narrow_weights)
    widest = plain if limits is None else WeightEncoding(bits=PROMOTED_BITS)
    head = WeightEncoding(bits=scheme.head_bits)
    for part, products, weight in (("layers", inner, widest), ("head", spec.hidden_size, head)):
        largest = -weight.qmin
        if products * ACTIVATION_STEPS * largest > INT32_MAX:
            raise SchemeError(
                f"scheme {scheme.name}: {part}: sums over {products} products can overflow 32 bits",
                hint=f"at {weight.bits}-bit weights a row may have {INT32_MAX // (ACTIVATION_STEPS * largest)} at most",
            )
