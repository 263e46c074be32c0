"""`QuantPlan`: the one record of a quantised model's encodings; every writer reads it and none changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.errors import InputError, SchemeError
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec

PLAN_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class WeightEncoding:
    """Symmetric per-output-channel (axis 0) integers; the scales lie beside the integers as `<name>.scale`."""

    bits: int
    narrow: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise SchemeError(f"weight encoding: {self.bits} bits is neither 4 nor 8")

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) + (1 if self.narrow else 0)

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """Invariants: `edges` has an entry for every edge of the primitive decoder of `spec`, `weights` one for
    every linear and embedding weight; `prefix_ids` are the tokens whose K/V constants fill the first cache slots.
    """

    spec: ModelSpec
    scheme: QuantScheme
    edges: dict[str, TensorEncoding]
    weights: dict[str, WeightEncoding]
    prefix_ids: tuple[int, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def promoted(self) -> list[str]:
        """Names, sorted, of the weights in the blocks that have more bits than the scheme gives them."""
        more = (name for name, weight in self.weights.items() if weight.bits > self.scheme.weight_bits)
        return sorted(name for name in more if name.startswith("layers."))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "spec": self.spec.to_json(),
            "scheme": self.scheme.to_json(),
            "edges": {name: encoding.to_json() for name, encoding in self.edges.items()},
            "weights": {name: {"bits": w.bits, "narrow": w.narrow} for name, w in self.weights.items()},
            "prefix_ids": list(self.prefix_ids),
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "quant_plan.json") -> QuantPlan:
        version = data.get("format")
        if type(version) is not int or version < 1:
            raise InputError(f"{where}: field format is {version!r}, expected {PLAN_FORMAT}")
        if version > PLAN_FORMAT:
            raise InputError(
                f"{where}: plan format {version} is newer than {PLAN_FORMAT}", hint="install a newer mobileicsa"
            )
        try:
            return cls(
                spec=ModelSpec.from_json(data["spec"]),
                scheme=QuantScheme(**data["scheme"]),
                edges={name: TensorEncoding.from_json(e) for name, e in data["edges"].items()},
                weights={name: WeightEncoding(**w) for name, w in data["weights"].items()},
                prefix_ids=tuple(int(i) for i in data["prefix_ids"]),
                provenance=dict(data["provenance"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: malformed plan: {type(error).__name__} {error}") from error
