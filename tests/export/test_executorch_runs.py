"""ExecuTorch on the written model.pte: the simulator's integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, family_spec
from mobileicsa_export.executorch import ExecutorchBackend, _lower, _save
from mobileicsa_export.executorch_graph import prepare
from tiny_frozen import CONTEXT, eager, float_decoder, freeze, generate, target, tiny_frozen, tiny_spec
from torch import Tensor, nn

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.edge import Edge
from mobileicsa.program.backend import Session
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.methods import export_method
from mobileicsa.program.qdq import QdqEdge
from mobileicsa.program.simulator import SimulatorSession

METADATA = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [], "context": CONTEXT}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(decoder: Decoder, folder: Path) -> Session:
    ExecutorchBackend().write(decoder, target(), folder, METADATA)
    return ExecutorchBackend().open(folder, decoder.spec, target(), threads=1)


def assert_equal_integers(frozen: FrozenModel, folder: Path) -> None:
    session = opened(build_decoder(frozen, primitive=False), folder)
    decoder = build_decoder(frozen, primitive=False)
    step = frozen.plan.edges["head.logits"].scale[0]
    expected = generate(decoder, SimulatorSession(decoder, target()).run)
    got = generate(decoder, session.run)
    session.close()
    rows = [(a, b) for (_, x), (_, y) in zip(expected, got, strict=True) for a, b in zip(x, y, strict=True)]
    assert {b.dtype for _, b in rows} == {np.dtype(np.int8)}
    # Float regions may round a tie differently: at most one step, in at most one value of a thousand.
    assert max(np.abs(a.astype(int) - b).max() for a, b in rows) <= 1
    assert np.mean([(a == b).mean() for a, b in rows]) >= 0.999
    steps = [np.abs(np.rint((a - b) / step)) for (a, _), (b, _) in zip(expected, got, strict=True)]
    assert np.mean([(s <= 2).mean() for s in steps]) >= 0.99


@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
def test_executorch_gives_the_simulators_integers(scheme: str, tmp_path: Path) -> None:
    assert_equal_integers(tiny_frozen(scheme, layers=(LayerSpec(),)), tmp_path)


def every_quirk() -> ModelSpec:
    """Layer norms with bias, biases everywhere, partial RoPE, a layer without RoPE, a window, no tying."""
    spec = family_spec("stablelm")
    layers = (LayerSpec(rope=None), LayerSpec(sliding_window=4))
    return replace(spec, layers=layers, mlp_bias=True, o_bias=True, head_bias=True)


@pytest.mark.parametrize("make", [every_quirk, lambda: family_spec("gemma2")], ids=["biases", "gemma2"])
def test_biases_windows_caps_and_norms_behind_give_the_simulators_integers(make: object, tmp_path: Path) -> None:
    assert_equal_integers(freeze(make()), tmp_path)  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a16"])
def test_every_family_gives_the_simulators_integers(name: str, scheme: str, tmp_path: Path) -> None:
    assert_equal_integers(freeze(family_spec(name), scheme), tmp_path)


@pytest.mark.slow
def test_a_float_decoder_is_written_and_runs_as_itself(tmp_path: Path) -> None:
    decoder = float_decoder(tiny_spec())
    session = opened(decoder, tmp_path)
    expected, got = generate(decoder, eager(decoder), np.float32), generate(decoder, session.run, np.float32)
    for (a, _), (b, _) in zip(expected, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


class OneEdge(nn.Module):
    """y = the grid point of x, on a 16-bit edge."""

    def __init__(self, encoding: TensorEncoding) -> None:
        super().__init__()
        self.edge = QdqEdge(Edge("residual"), encoding)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.edge(x) + 0.0,)


def hard_values(encoding: TensorEncoding) -> Tensor:
    """Ties, both ends of the range and beyond, tiny and huge numbers, and random ones."""
    steps = torch.cat((torch.arange(-40, 40) + 0.5, torch.tensor([-32769.5, -32768.5, 32766.5, 32767.5, 40000.0])))
    ties = (steps - encoding.zero_point[0]) * encoding.scale[0]
    wild = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])
    spread = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * encoding.scale[0] * 20_000
    return torch.cat((ties, wild, spread))[None]


@pytest.mark.parametrize(("scale", "zero"), [(2.0**-9, 0), (2.0**-9, -1234), (0.0037, 311), (1 / 65535, -32768)])
def test_sixteen_bit_edges_are_exact(scale: float, zero: int, tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    encoding = TensorEncoding(bits=16, scale=(scale,), zero_point=(zero,))
    x, module = hard_values(encoding), OneEdge(encoding)
    program = torch.export.export(module, (x,), strict=False)
    assert prepare(program, {}) == {"int16_edges_in_float_arithmetic": 1}
    _save(_lower({"forward": program}, {}), tmp_path / "edge.pte")
    (y,) = Runtime.get().load_program(tmp_path / "edge.pte").load_method("forward").execute([x])
    assert torch.equal(y, module(x)[0])


def test_a_bias_beyond_int32_is_kept_out_of_the_integer_sum() -> None:
    frozen = tiny_frozen(qkv_bias=True, layers=(LayerSpec(),))
    name = "layers.0.attn.q_proj"
    huge = {**frozen.tensors, f"{name}.weight.scale": torch.full_like(frozen.tensors[f"{name}.weight.scale"], 1e-9)}
    counts = []
    for tensors in (frozen.tensors, huge):
        decoder = build_decoder(FrozenModel(frozen.plan, tensors), primitive=False)
        counts.append(prepare(export_method(decoder, target(), "decode"), {})["int8_to_int8"])
    assert counts[0] - counts[1] == 1
