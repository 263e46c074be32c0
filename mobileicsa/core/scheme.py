"""`QuantScheme`: how many bits each kind of tensor gets. Adding a scheme is adding one constant."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from mobileicsa.core.errors import SchemeError


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """Bits per role. Activations are static, per tensor; weights symmetric per output channel.

    Invariants: `activation_bits` names every edge role except "constant" and "internal" ones, which are 16.
    `narrow_weights`: 4-bit weights leave the code -8 unused, as targets that want [-7, 7] require; 8-bit ones always
    leave -128. `wide_edges`: names of edges that have 16 bits, whatever their role's are (mixed precision).
    """

    name: str
    weight_bits: int
    activation_bits: dict[str, int]
    head_bits: int = 8
    embedding_bits: int = 8
    narrow_weights: bool = True
    wide_edges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weight_bits == 8 and not self.narrow_weights:
            raise SchemeError(f"scheme {self.name}: 8-bit weights have no code -128")
        object.__setattr__(self, "wide_edges", tuple(self.wide_edges))  # a list where it comes from JSON

    def bits(self, role: str, edge: str = "") -> int:
        """Of a role's edges, or of the edge of that name."""
        return 16 if edge in self.wide_edges else self.activation_bits.get(role, 16)

    def mantissa_bits(self, role: str, edge: str = "") -> int:
        """Length of an activation scale's mantissa (see `core.encoding.shorten`).

        16-bit edges have range to spare: powers of two. The factors of q·k and of probs·v: short enough that their
        float32 sums are exact. Inputs of linears: exact when scaled once more by the weight's scale.
        """
        if self.bits(role, edge) == 16:
            return 0
        return 2 if role in ("qkv", "kv") else 6

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# MobileQuant's bit table: 16 bits on the residual stream and its summands, around softmax, and on the logits.
_A16_ROLES = ("residual", "branch", "scores", "probs", "logits")
_A8_ROLES = ("norm_out", "head_in", "qkv", "kv", "attention_out", "mlp", "down_in", "sigmoid")
_STATIC_A8 = {**dict.fromkeys(_A8_ROLES, 8), **dict.fromkeys(_A16_ROLES, 16)}
_STATIC_A16 = {**dict.fromkeys(_A8_ROLES + _A16_ROLES, 16), "kv": 8}

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantScheme(name="w8a8", weight_bits=8, activation_bits=_STATIC_A8),
        QuantScheme(name="w4a8", weight_bits=4, activation_bits=_STATIC_A8),
        QuantScheme(name="w4a16", weight_bits=4, activation_bits=_STATIC_A16),
    )
}


def find_scheme(name: str) -> QuantScheme:
    """The scheme of that name, case-insensitively."""
    scheme = SCHEMES.get(name.lower())
    if scheme is None:
        near = difflib.get_close_matches(name.lower(), SCHEMES, n=1)
        raise SchemeError(
            f"--scheme {name}: unknown; schemes are {', '.join(SCHEMES)}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return scheme
