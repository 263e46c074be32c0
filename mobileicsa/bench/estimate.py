"""What a generated token costs by arithmetic and published constants: an estimate, never a measurement."""

from __future__ import annotations

from typing import Any

from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target

SOURCE = "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, figure 1.1.9: 45 nm, 0.9 V"
WHAT = (
    "an estimate, not a measurement: memory traffic and multiplications of one decode step times published constants "
    "of an older process and of DDR memory; good for comparing models, not for a battery"
)
# Picojoules. A DRAM access of 64 bits: 1.3 to 2.6 nJ.
DRAM_PJ_PER_BYTE = (1300 / 8, 2600 / 8)
# A product and the addition to a 32-bit sum: int8 0.2 + 0.1, float32 3.7 + 0.9.
MAC_PJ = {"int8": 0.3, "float32": 4.6}


def macs_per_token(plan: QuantPlan, target: Target) -> int:
    """Multiply-accumulates of one decode step: every linear, and attention over all slots of the static cache."""
    spec = plan.spec
    attention = 2 * spec.num_layers * spec.num_heads * spec.head_dim * target.context
    mix = spec.hidden_size**2 if spec.head_mix else 0
    return spec.decoder_weight_count + spec.hidden_size * spec.vocab_size + mix + attention


def estimate(bytes_per_token: int, macs: int, dtype: str) -> dict[str, Any]:
    """Millijoules a token, least and most; `dtype` int8 or float32 (4-bit weights are multiplied as int8)."""
    arithmetic = macs * MAC_PJ[dtype]
    low, high = ((bytes_per_token * memory + arithmetic) * 1e-9 for memory in DRAM_PJ_PER_BYTE)
    return {
        "mj_per_token": [low, high],
        "what": WHAT,
        "bytes_per_token": bytes_per_token,
        "macs_per_token": macs,
        "dram_pj_per_byte": list(DRAM_PJ_PER_BYTE),
        "mac_pj": MAC_PJ[dtype],
        "source": SOURCE,
    }
