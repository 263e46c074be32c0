"""ExecuTorch on the written model.pte: the simulator's integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, family_spec
from mobileicsa_export.executorch import MODEL_FILE, ExecutorchBackend, _lower, _save
from mobileicsa_export.executorch_graph import prepare
from mobileicsa_export.executorch_placement import delegate_graphs, placement
from tiny_frozen import CONTEXT, eager, float_decoder, freeze, generate, target, tiny_frozen, tiny_spec
from torch import Tensor, nn

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.spec import LayerSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.edge import Edge
from mobileicsa.program.backend import Session
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.methods import export_method
from mobileicsa.program.qdq import QdqEdge
from mobileicsa.program.simulator import SimulatorSession

# float32 holds a value of 16 bits to some thousandth of a step, so that in w4a16 every edge may flip a tie.
LOGIT_STEPS = {"w8a8": 2, "w4a8": 2, "w4a16": 32}
METADATA = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [], "context": CONTEXT}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(decoder: Decoder, folder: Path) -> Session:
    ExecutorchBackend().write(decoder, target(), folder, METADATA)
    return ExecutorchBackend().open(folder, decoder.spec, target(), threads=1)


def assert_equal_integers(frozen: FrozenModel, session: Session) -> None:
    decoder = build_decoder(frozen, primitive=False)
    step = frozen.plan.edges["head.logits"].scale[0]
    expected = generate(decoder, SimulatorSession(decoder, target()).run)
    got = generate(decoder, session.run)
    session.close()
    rows = [(a, b) for (_, x), (_, y) in zip(expected, got, strict=True) for a, b in zip(x, y, strict=True)]
    assert {b.dtype for _, b in rows} == {np.dtype(np.int8)}
    # Norm and softmax run in float32 in an order of their own and may round a tie differently: at most one step, in at
    # most one value of a thousand; the logits behind it then differ by more.
    assert max(np.abs(a.astype(int) - b).max() for a, b in rows) <= 1
    assert np.mean([(a == b).mean() for a, b in rows]) >= 0.999
    steps = [np.abs(np.rint((a - b) / step)) for (a, _), (b, _) in zip(expected, got, strict=True)]
    assert np.mean([(s <= LOGIT_STEPS[frozen.plan.scheme.name]).mean() for s in steps]) >= 0.95


def opened_frozen(frozen: FrozenModel, folder: Path) -> Session:
    return opened(build_decoder(frozen, primitive=False), folder)


def test_four_bit_weights_take_half_a_byte_each_and_give_the_simulators_integers(tmp_path: Path) -> None:
    frozen = tiny_frozen("w4a8", hidden_size=192, intermediate_size=320, num_heads=12, layers=(LayerSpec(),))
    assert_equal_integers(frozen, opened_frozen(frozen, tmp_path))
    (graph,) = delegate_graphs(tmp_path / MODEL_FILE, "decode")
    values = [v["xvalue_union"].get("tensor_value", v["xvalue_union"]) for v in graph["xvalues"]]
    weights = [v for v in values if v["datatype"] == "xnn_datatype_qcint4"]
    assert len(weights) == 7
    stored = sum(graph["constant_data"][v["constant_buffer_idx"]]["size"] for v in weights)
    # Two columns of padding where the input's range is pinned (o_proj and down_proj).
    assert 0.5 <= stored / frozen.plan.spec.decoder_weight_count <= 0.51


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a16"])
def test_a_rotated_models_mix_before_a_tied_head_gives_the_simulators_integers(scheme: str, tmp_path: Path) -> None:
    frozen = tiny_frozen(scheme, head_mix=True)
    assert_equal_integers(frozen, opened_frozen(frozen, tmp_path))


def test_sixteen_bit_inputs_give_the_simulators_integers(tmp_path: Path) -> None:
    frozen = tiny_frozen("w4a16", layers=(LayerSpec(),))
    assert_equal_integers(frozen, opened_frozen(frozen, tmp_path))


def test_every_quirk_of_a_family_at_once_gives_the_simulators_integers(tmp_path: Path) -> None:
    spec = replace(
        family_spec("stablelm"),  # layer norms with bias, bias of q, k, v, partial RoPE, a head of its own
        layers=(LayerSpec(sliding_window=4),),
        mlp_bias=True,
        o_bias=True,
        head_bias=True,
        qk_norm="head",
        post_norm=True,
        attention_softcap=20.0,
        logit_softcap=30.0,
        activation="gelu_tanh",
        embed_scale=8.0,
    )
    frozen = freeze(spec)
    assert_equal_integers(frozen, opened_frozen(frozen, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a16"])
def test_every_family_gives_the_simulators_integers(name: str, scheme: str, tmp_path: Path) -> None:
    frozen = freeze(family_spec(name), scheme)
    assert_equal_integers(frozen, opened_frozen(frozen, tmp_path))


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


class _Gelu(nn.Module):
    def __init__(self, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.nn.functional.gelu(x, approximate=self.approximate) * 1.0,)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_each_gelu_is_computed_as_itself(approximate: str, tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    x, module = torch.linspace(-6, 6, 2001)[None], _Gelu(approximate)
    program = torch.export.export(module, (x,), strict=False)
    prepare(program, {})
    _save(_lower({"decode": program}, {}), tmp_path / MODEL_FILE)
    (y,) = Runtime.get().load_program(tmp_path / MODEL_FILE).load_method("decode").execute([x])
    # The two differ from each other by up to 5e-4.
    torch.testing.assert_close(y, module(x)[0], rtol=0.0, atol=5e-6)
    assert placement(tmp_path / MODEL_FILE)["outside"] == 0


def test_a_bias_beyond_int32_is_kept_out_of_the_integer_sum() -> None:
    frozen = tiny_frozen(qkv_bias=True, layers=(LayerSpec(),))
    name = "layers.0.attn.q_proj"
    huge = {**frozen.tensors, f"{name}.weight.scale": torch.full_like(frozen.tensors[f"{name}.weight.scale"], 1e-9)}
    counts = []
    for tensors in (frozen.tensors, huge):
        decoder = build_decoder(FrozenModel(frozen.plan, tensors), primitive=False)
        counts.append(prepare(export_method(decoder, target(), "decode"), {})["int8_to_int8"])
    assert counts[0] - counts[1] == 1


def test_biases_lie_on_the_grid_of_the_sum_that_they_are_added_to() -> None:
    frozen = tiny_frozen(qkv_bias=True, mlp_bias=True)
    decoder = build_decoder(frozen, primitive=False)
    for name, edge in (("layers.1.attn.q_proj", "attn_norm.out"), ("layers.1.mlp.down_proj", "mlp.product")):
        bias = decoder.get_submodule(name).bias
        step = frozen.tensors[f"{name}.weight.scale"] * frozen.plan.edges[f"layers.1.{edge}"].scale[0]
        torch.testing.assert_close(bias / step, torch.round(bias / step), rtol=1e-5, atol=0.0)
        assert (bias - frozen.tensors[f"{name}.bias"]).abs().le(0.501 * step).all()
        assert not torch.equal(bias, frozen.tensors[f"{name}.bias"])
