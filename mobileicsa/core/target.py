"""`Target`: what a piece of hardware (or the host) wants from the program, as data from `targets/<name>.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mobileicsa.core.errors import InputError

# Fields that artifacts still carry and nothing reads any more.
RETIRED = ("least_equal",)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Invariants: context > prefill_chunk >= 1.

    - nonlinear: "fused" runs norm, softmax, RoPE and SiLU in float between encoded borders (host CPU);
      "primitive" encodes every inner edge too (integer-only compilers);
    - int4_storage: how writers store 4-bit weights; int4_full_range: whether they may have the code -8 (TOSA's INT4
      is [-7, 7]);
    - int16_inputs: whether its kernels multiply 16-bit inputs of linears (mixed precision may then give them);
    - linears: pairs of input and weight bits ("a8w4") that its linears multiply in integers; none named: any, and what
      its back ends then run in float they report;
    - max_bytes: the largest program, weights included, that the device takes at once; None: no ceiling known;
    - rounding: how its integer kernels round a rescaled sum, where that is known (the simulator rounds half to even,
      and a writer imitates it as far as it can);
    - opset: of the ONNX files written for it;
    - device: what its compiler is told of the device, by that compiler's own names;
    - least_top1: the share of best tokens equal to the simulator's below which `verify` calls an output wrong; kernels
      that round otherwise let noise pile up over the layers;
    - context: cache slots including the prefix; prefill_chunk: tokens per prefill call.
    """

    name: str
    description: str
    backends: tuple[str, ...]
    nonlinear: Literal["fused", "primitive"] = "fused"
    int4_storage: Literal["int4", "int8"] = "int4"
    int4_full_range: bool = False
    int16_inputs: bool = False
    linears: tuple[str, ...] = ()
    max_bytes: int | None = None
    rounding: Literal["half_even", "half_up", "half_away"] | None = None
    opset: int = 21
    device: dict[str, str | int] = field(default_factory=dict)
    least_top1: float = 0.9
    context: int = 512
    prefill_chunk: int = 64

    def __post_init__(self) -> None:
        wrong = [pair for pair in self.linears if re.fullmatch(r"a(8|16)w(4|8)", pair) is None]
        if wrong:
            raise InputError(f"target {self.name}: linears names {wrong[0]!r}; pairs are written as a8w4")
        if not 1 <= self.prefill_chunk < self.context:
            raise InputError(
                f"target {self.name}: prefill_chunk {self.prefill_chunk} must be at least 1 "
                f"and below context {self.context}"
            )

    @classmethod
    def from_mapping(cls, data: dict[str, Any], where: str) -> Target:
        known = {f.name for f in fields(cls)}
        data = {name: value for name, value in data.items() if name not in RETIRED}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InputError(f"{where}: unknown fields {unknown}; known are {sorted(known)}")
        try:
            return cls(**{**data, "backends": tuple(data["backends"]), "linears": tuple(data.get("linears", ()))})
        except (KeyError, TypeError) as error:
            raise InputError(f"{where}: malformed target: {error}") from error
