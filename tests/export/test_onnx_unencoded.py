"""A primitive program leaves no real-valued tensor without an encoding, in any family, and still computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from families import FAMILIES, family_spec
from mobileicsa_export.onnx import MODEL_FILES, OnnxBackend
from mobileicsa_export.onnx_session import OnnxSession
from mobileicsa_export.onnx_unencoded import unencoded
from tiny_frozen import CONTEXT, freeze, generate, target, tiny_frozen

from mobileicsa.models.decoder import MASKED
from mobileicsa.models.layers import SOFTMAX_FLOOR
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.simulator import SimulatorSession


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_without_an_encoding_and_every_integer_is_the_simulators(family: str, tmp_path: Path) -> None:
    decoder = build_decoder(freeze(family_spec(family)), primitive=True)
    OnnxBackend().write(decoder, target(nonlinear="primitive"), tmp_path, {"context": CONTEXT})
    for file in MODEL_FILES.values():
        assert unencoded(ir.load(tmp_path / file).graph) == []
    session = OnnxSession(tmp_path, decoder.spec, threads=1, numerics="exact")
    expected = generate(decoder, SimulatorSession(decoder, target()).run)
    for (a, x), (b, y) in zip(expected, generate(decoder, session.run), strict=True):
        np.testing.assert_array_equal(a, b)
        for ours, theirs in zip(x, y, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_fused_program_is_listed(tmp_path: Path) -> None:
    decoder = build_decoder(tiny_frozen(), primitive=False)
    OnnxBackend().write(decoder, target(), tmp_path, {"context": CONTEXT})
    found = unencoded(ir.load(tmp_path / "model.onnx").graph)
    assert {"Sqrt", "Reciprocal", "Softmax"} <= {entry["op"] for entry in found}


def test_a_masked_position_has_probability_zero_whatever_the_scores() -> None:
    decoder = build_decoder(tiny_frozen(), primitive=True)
    attention = decoder.layers[0].attn
    low, high = attention.scores.encoding.real_range()
    mask = decoder.mask(torch.tensor([0.0, MASKED]))
    for allowed, hidden in ((low, high), (high, low), (0.0, high)):
        probs = attention.softmax(attention.scores(torch.tensor([allowed, hidden])), mask)
        assert float(probs[1]) == 0.0
        assert float(probs[0]) == pytest.approx(1.0, abs=1e-3)
    assert attention.softmax.masked.encoding.real_range()[0] <= low + SOFTMAX_FLOOR
