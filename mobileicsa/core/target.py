"""`Target`: what a piece of hardware (or the host) wants from the program, as data from `targets/<name>.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from mobileicsa.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Target:
    """Invariants: context > prefill_chunk >= 1.

    - nonlinear: "fused" runs norm, softmax, RoPE and SiLU in float between encoded borders (host CPU);
      "primitive" encodes every inner edge too (integer-only compilers);
    - int4_storage: how writers store 4-bit weights; int4_full_range: whether they may have the code -8 (TOSA's INT4
      is [-7, 7]);
    - int16_inputs: whether its kernels multiply 16-bit inputs of linears (mixed precision may then give them);
    - context: cache slots including the prefix; prefill_chunk: tokens per prefill call.
    """

    name: str
    description: str
    backends: tuple[str, ...]
    nonlinear: Literal["fused", "primitive"] = "fused"
    int4_storage: Literal["int4", "int8"] = "int4"
    int4_full_range: bool = False
    int16_inputs: bool = False
    context: int = 512
    prefill_chunk: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.prefill_chunk < self.context:
            raise InputError(
                f"target {self.name}: prefill_chunk {self.prefill_chunk} must be at least 1 "
                f"and below context {self.context}"
            )

    @classmethod
    def from_mapping(cls, data: dict[str, Any], where: str) -> Target:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InputError(f"{where}: unknown fields {unknown}; known are {sorted(known)}")
        try:
            return cls(**{**data, "backends": tuple(data["backends"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"{where}: malformed target: {error}") from error
