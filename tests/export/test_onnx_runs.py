"""ONNX Runtime on the written models: the simulator's integers, in integer kernels, on every kind of CPU."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from mobileicsa_export.onnx import MODEL_FILES, OnnxBackend
from mobileicsa_export.onnx_lowering import Kernels, lower
from mobileicsa_export.onnx_placement import placement
from mobileicsa_export.onnx_session import OnnxSession
from tiny_frozen import CONTEXT, eager, float_decoder, generate, target, tiny_frozen, tiny_spec

from mobileicsa.core.spec import LayerSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.frozen import FrozenModel, build_decoder
from mobileicsa.program.methods import input_names
from mobileicsa.program.simulator import SimulatorSession


def written(decoder: Decoder, folder: Path, int4_storage: str = "int8") -> Path:
    OnnxBackend().write(decoder, target(int4_storage), folder, {"context": CONTEXT})
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def frozen() -> FrozenModel:
    return tiny_frozen("w8a8")


@pytest.fixture(scope="module")
def artifact(frozen: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(build_decoder(frozen, primitive=False), tmp_path_factory.mktemp("w8a8"))


def assert_equal_integers(frozen: FrozenModel, folder: Path, decoder: Decoder, *, optimise: bool) -> None:
    session = OnnxSession(folder, decoder.spec, threads=1, numerics="fast" if optimise else "as_written")
    step = frozen.plan.edges["head.logits"].scale[0]
    expected, got = generate(decoder, eager(decoder)), generate(decoder, session.run)
    rows = [(a, b) for (_, x), (_, y) in zip(expected, got, strict=True) for a, b in zip(x, y, strict=True)]
    assert {b.dtype for _, b in rows} == {np.dtype(np.int8)}
    # Float regions may round a tie differently: at most one step, in at most one value of a hundred.
    assert max(np.abs(a.astype(int) - b).max() for a, b in rows) <= 1
    assert np.mean([(a == b).mean() for a, b in rows]) >= 0.99
    steps = [np.abs(np.rint((a - b) / step)) for (a, _), (b, _) in zip(expected, got, strict=True)]
    assert np.mean([(s <= 2).mean() for s in steps]) >= 0.97


@pytest.mark.parametrize("optimise", [False, True])
def test_onnx_runtime_gives_the_simulators_integers(frozen: FrozenModel, artifact: Path, optimise: bool) -> None:
    assert_equal_integers(frozen, artifact, build_decoder(frozen, primitive=False), optimise=optimise)


@pytest.mark.parametrize("storage", ["int4", "int8"])
def test_four_bit_weights_give_the_simulators_integers(storage: str, tmp_path: Path) -> None:
    frozen = tiny_frozen("w4a8")
    decoder = build_decoder(frozen, primitive=False)
    assert_equal_integers(frozen, written(decoder, tmp_path, storage), decoder, optimise=True)


@pytest.fixture(scope="module")
def deep() -> FrozenModel:
    """Deep and wide enough that float32 regions do round some value the other way."""
    return tiny_frozen("w8a8", hidden_size=192, intermediate_size=320, num_heads=12, layers=(LayerSpec(),) * 6)


@pytest.mark.parametrize("primitive", [False, True])
def test_exact_numerics_give_every_integer_of_the_simulator(deep: FrozenModel, primitive: bool, tmp_path: Path) -> None:
    decoder = build_decoder(deep, primitive=primitive)
    session = OnnxSession(written(decoder, tmp_path), decoder.spec, threads=1, numerics="exact")
    expected = generate(decoder, SimulatorSession(decoder, target()).run)
    for (a, x), (b, y) in zip(expected, generate(decoder, session.run), strict=True):
        np.testing.assert_array_equal(a, b)
        for ours, theirs in zip(x, y, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_primitive_decoder_gives_the_simulators_integers(frozen: FrozenModel, tmp_path: Path) -> None:
    decoder = build_decoder(frozen, primitive=True)
    assert_equal_integers(frozen, written(decoder, tmp_path), decoder, optimise=True)


@pytest.mark.parametrize("primitive", [False, True])
def test_a_rotated_models_mix_before_a_tied_head_gives_the_simulators_integers(primitive: bool, tmp_path: Path) -> None:
    frozen = tiny_frozen("w8a8", head_mix=True)
    decoder = build_decoder(frozen, primitive=primitive)
    assert_equal_integers(frozen, written(decoder, tmp_path), decoder, optimise=True)


def test_norms_with_bias_windows_and_caps_give_the_simulators_integers(tmp_path: Path) -> None:
    frozen = tiny_frozen(
        "w8a8",
        norm="layer",
        norm_bias=True,
        qkv_bias=True,
        mlp_bias=True,
        attention_softcap=30.0,
        logit_softcap=20.0,
        tied_head=False,
        layers=(LayerSpec(rope=None), LayerSpec(sliding_window=4)),
    )
    decoder = build_decoder(frozen, primitive=False)
    assert_equal_integers(frozen, written(decoder, tmp_path), decoder, optimise=True)


def test_a_float_decoder_is_written_and_runs_as_itself(tmp_path: Path) -> None:
    decoder = float_decoder(tiny_spec())
    session = OnnxSession(written(decoder, tmp_path), decoder.spec, threads=1)
    expected = generate(decoder, eager(decoder), np.float32)
    for (a, _), (b, _) in zip(expected, generate(decoder, session.run, np.float32), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    nodes = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in nodes}


def test_every_weight_product_runs_in_an_integer_kernel(artifact: Path) -> None:
    found = placement(artifact)
    layers = len(tiny_spec().layers)
    # Per layer seven linears in integers, two products of activations in float; and the head.
    assert found["products"] == {"integer": 7 * layers + 1, "float": 2 * layers}
    assert found["integer"] + found["float"] + found["boundary"] == sum(
        sum(kinds.values()) for kinds in found["by_op"].values()
    )


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_every_kind_of_cpu_gets_the_same_numbers(artifact: Path, unsigned: bool, exact: bool) -> None:
    kernels = Kernels(unsigned=unsigned, mixed_sign_exact=exact)
    lowered = ir.load(artifact / "model.onnx")
    lower(lowered, kernels)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(artifact))
    fast = ort.InferenceSession(ir.to_proto(lowered).SerializeToString(), options)
    ops = Counter(node.op_type for node in lowered.graph)
    assert (ops["QLinearMatMul"] > 0) == exact
    assert ops["MatMulIntegerToFloat"] + ops["QLinearMatMul"] == 15
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(str(artifact / "model.onnx"), options)
    feed = {i.name: np.zeros(i.shape, np.int8 if "int8" in i.type else np.int64) for i in plain.get_inputs()}
    for token in (3, 77):
        feed["input_ids"][:] = token
        for a, b in zip(plain.run(None, feed)[1:], fast.run(None, feed)[1:], strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1
            assert (a == b).mean() >= 0.99


def test_stock_onnx_runtime_loads_the_file_with_default_options(frozen: FrozenModel, artifact: Path) -> None:
    sessions = {m: ort.InferenceSession(str(artifact / f)) for m, f in MODEL_FILES.items()}
    names = input_names(frozen.plan.spec)

    def step(
        method: str, ids: np.ndarray, position: int, cache: list[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        logits, *rows = sessions[method].run(None, dict(zip(names, (ids, np.array([position]), *cache), strict=True)))
        return logits, rows

    decoder = build_decoder(frozen, primitive=False)
    for (_, a), (_, b) in zip(generate(decoder, eager(decoder)), generate(decoder, step), strict=True):
        assert np.mean([(x == y).mean() for x, y in zip(a, b, strict=True)]) >= 0.99
