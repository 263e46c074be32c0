"""One quantised linear between two encoded edges, as the simulator, ONNX Runtime and ExecuTorch compute it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mobileicsa_export.executorch import _lower, _save
from mobileicsa_export.executorch_graph import prepare
from mobileicsa_export.onnx import DATA_FILE
from mobileicsa_export.onnx_data import SharedData
from mobileicsa_export.onnx_graph import convert, to_qdq_form
from mobileicsa_export.onnx_names import rename
from mobileicsa_export.onnx_session import Numerics, start
from torch import Tensor, nn

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.models.edge import Edge
from mobileicsa.models.layers import Linear
from mobileicsa.program.qdq import QdqEdge, QuantLinear

INT8 = WeightEncoding(bits=8)
NUMERICS: tuple[Numerics, ...] = ("as_written", "fast", "exact")


def encoding(scale: float, zero: int, bits: int = 8) -> TensorEncoding:
    return TensorEncoding(bits=bits, scale=(scale,), zero_point=(zero,))


class OneLinear(nn.Module):
    """x (rows, K) float32 -> integers of the output edge; real values where it has 16 bits, which XNNPACK lacks.

    Weights (N, K) are random codes of `kind`, seeded.
    """

    def __init__(
        self,
        x: TensorEncoding,
        y: TensorEncoding,
        scales: Tensor,
        inputs: int,
        kind: WeightEncoding = INT8,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(inputs)
        codes = torch.randint(kind.qmin, kind.qmax + 1, (len(scales), inputs), generator=generator).to(torch.int8)
        plain = Linear(inputs, len(scales), bias=False, role="qkv")
        plain.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.bits = kind.bits
        self.x, self.y = QdqEdge(Edge("norm_out"), x), QdqEdge(Edge("qkv"), y)
        self.linear = QuantLinear(plain, codes, scales.to(torch.float32), kind)
        self.linear.out = Edge("qkv")

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(self.x(x))
        return self.y(y) if self.y.encoding.bits == 16 else self.y.store(y)


class _Bundle(nn.Module):
    """Models side by side on one input. Exported names begin with `decoder.`, as those of a whole program do."""

    def __init__(self, models: Mapping[str, OneLinear]) -> None:
        super().__init__()
        self.decoder = nn.ModuleDict(models)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(x) for model in self.decoder.values())


def exported(models: Mapping[str, OneLinear], x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(_Bundle(models).eval(), (x,), strict=False)


@torch.no_grad()
def simulated(model: OneLinear, x: Tensor) -> np.ndarray:
    return model(x).numpy()


def by_onnx(models: Mapping[str, OneLinear], x: Tensor, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Output of each model under each kind of numerics."""
    written = convert(exported(models, x))
    to_qdq_form(written, {f"decoder.{name}.linear.weight": model.bits for name, model in models.items()})
    rename(written, ["x"], list(models))
    with SharedData(folder / DATA_FILE) as data:
        data.save(written, folder / "model.onnx")
    found = {}
    for numerics in NUMERICS:
        session = start(folder / "model.onnx", threads=1, numerics=numerics)
        found[numerics] = dict(zip(models, session.run(None, {"x": x.numpy()}), strict=True))
    return found


def by_executorch(models: Mapping[str, OneLinear], x: Tensor, folder: Path) -> dict[str, np.ndarray]:
    from executorch.runtime import Runtime, Verification

    program = exported(models, x)
    prepare(program, {})
    _save(_lower({"forward": program}, {}), folder / "model.pte")
    loaded = Runtime.get().load_program(folder / "model.pte", verification=Verification.InternalConsistency)
    outputs = loaded.load_method("forward").execute([x])
    return {name: output.numpy().copy() for name, output in zip(models, outputs, strict=True)}
