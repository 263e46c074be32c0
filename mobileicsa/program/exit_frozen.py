"""The stages of an early-exit artifact made again from its plan and its integers; nothing is looked at anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.errors import SchemeError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec
from mobileicsa.program.exit_stages import ExitProgram, first_blocks, quantized_stages, stage_name, weight_name

if TYPE_CHECKING:
    from mobileicsa.quantize.pt2e_specs import Specs


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """`edges` by `stage_<e>/<node>` and borders by their names; `inner_edges`: the same of the primitive form, whose
    nodes are others. `weights`: encodings by the model's names."""

    spec: ExitVitSpec
    scheme: QuantScheme
    edges: dict[str, TensorEncoding]
    inner_edges: dict[str, TensorEncoding]
    borders: tuple[str, ...]
    weights: dict[str, WeightEncoding]

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec.to_json(),
            "scheme": self.scheme.to_json(),
            "edges": {name: encoding.to_json() for name, encoding in self.edges.items()},
            "inner_edges": {name: encoding.to_json() for name, encoding in self.inner_edges.items()},
            "borders": list(self.borders),
            "weights": {name: {"bits": w.bits, "narrow": w.narrow} for name, w in self.weights.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StagePlan:
        """Raises SchemeError where a field is missing or malformed; a plan of an older version has no inner edges."""
        try:
            return cls(
                spec=ExitVitSpec.from_json(data["spec"]),
                scheme=QuantScheme(**data["scheme"]),
                edges={name: TensorEncoding.from_json(each) for name, each in data["edges"].items()},
                inner_edges={name: TensorEncoding.from_json(e) for name, e in data.get("inner_edges", {}).items()},
                borders=tuple(data["borders"]),
                weights={name: WeightEncoding(**each) for name, each in data["weights"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SchemeError(f"the plan of an early-exit artifact is malformed: {error}") from error


def frozen_exits(plan: StagePlan, tensors: Mapping[str, Tensor], *, primitive: bool) -> ExitProgram:
    """`tensors`: integers and scales of the plan's weights, and all else of the model in float, by its names."""
    model = dequantized(plan, tensors)
    table = plan.inner_edges if primitive else plan.edges
    scales = {name: tensors[f"{name}.scale"] for name in plan.weights}
    firsts = first_blocks(model)

    def specs_of(exit: int) -> Specs:
        from mobileicsa.quantize.pt2e_specs import PlannedSpecs

        prefix = f"{stage_name(exit)}/"
        edges = {name.removeprefix(prefix): e for name, e in table.items() if name.startswith(prefix)}

        def name_of(linear: fx.Node) -> str:
            return weight_name(linear, firsts[exit])

        return PlannedSpecs(plan.scheme, edges, scales, name_of)

    spec = plan.spec
    example = [(torch.zeros(1, spec.channels, spec.height, spec.width),)]
    borders = {name: plan.edges[name] for name in plan.borders}
    return quantized_stages(model, borders, example, specs_of, primitive=primitive)


def dequantized(plan: StagePlan, tensors: Mapping[str, Tensor]) -> ExitVit:
    """The model in float whose weights are what the integers stand for."""
    model = ExitVit(plan.spec).eval().requires_grad_(False)
    state = model.state_dict()
    found = {name: value for name, value in tensors.items() if name in state}
    for name in plan.weights:
        scale = tensors[f"{name}.scale"]
        found[name] = (tensors[name].to(torch.float32) * scale[:, None]).reshape(state[name].shape)
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise SchemeError(f"plan and weights of an early-exit artifact do not fit together: {error}") from error
    return model
