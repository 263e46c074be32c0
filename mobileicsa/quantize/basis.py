"""The basis of a plan: how its linears follow from the checkpoint's, so that an adapter can follow them later.

Every step that is exact in real numbers (rotations, moved norm gains, equivalent scalings) changes a linear's weight to
W' = diag(out) L W R diag(in), with orthogonal L and R. An update W + U D of the checkpoint is then
W' + (diag(out) L U) (D R diag(in)) of the plan. Steps that are not (rounding, learned weights and gains) change the
base, and an adapter's update is added to the base as it has become.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.adapter import LowRank
from mobileicsa.quantize.rotation import READERS, Rotated, Rotations

IN, OUT = ".in", ".out"


def basis_tensors(rotated: Rotated | None, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an artifact keeps (float32): `stream` and `values` of the rotations, the norm gains that they moved by the
    norm's canonical name, and per linear the factors of its inputs `<path>.in` and of its outputs `<path>.out`."""
    kept = {name: factor.to(torch.float32).contiguous() for name, factor in factors.items()}
    if rotated is None:
        return kept
    kept["values"] = rotated.values.contiguous()
    if rotated.stream is not None:
        kept["stream"] = rotated.stream.contiguous()
        norms = {norm for names in READERS.values() for norm in names}
        for index in range(rotated.spec.num_layers):
            for norm in norms if not rotated.spec.parallel_residual else {"attn_norm"}:
                name = f"layers.{index}.{norm}.weight"
                kept[name] = rotated.weights.get(name)
    return kept


class Basis:
    """`tensors`: those of `basis_tensors`."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.rotated: Rotated | None = None
        if "values" in tensors:
            self.rotated = Rotated(spec, _Gains(tensors), Rotations(tensors.get("stream"), tensors["values"]))

    def update(self, linear: str, update: LowRank) -> LowRank:
        """The update of the plan's linear for one of the checkpoint's canonical linear, `layers.3.attn.q_proj`."""
        down, up = update.down, update.up
        if self.rotated is not None:
            down, up = self.rotated.inputs(linear, down), self.rotated.outputs(linear, up)
        if linear + IN in self.tensors:
            down = down * self.tensors[linear + IN]
        if linear + OUT in self.tensors:
            up = up * self.tensors[linear + OUT][:, None]
        return LowRank(down, up)


class _Gains:
    """The kept norm gains, as a source of weights."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def get(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise InputError(f"basis: no tensor {name}", hint="the artifact is damaged: make it anew")
        return self.tensors[name]
