"""Offline rotations: orthogonal, folded without changing the function, and good against outliers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mobileicsa.calibrate.stream import Stream
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import SCHEMES
from mobileicsa.core.spec import LayerSpec, ModelSpec, RopeSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.quantize.ends import embedding_and_head
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rotation import rotate, rotates_stream
from mobileicsa.quantize.rotation_math import hadamard, random_hadamard
from mobileicsa.quantize.rounding import fake_quantize_weight, real_weight


@given(st.integers(1, 96), st.integers(0, 5))
def test_every_size_has_an_orthogonal_matrix(size: int, seed: int) -> None:
    matrix = random_hadamard(size, seed)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-10)


def test_a_hadamard_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="12"):
        hadamard(12)


class Weights:
    """A decoder's own random weights as a source."""

    def __init__(self, spec: ModelSpec) -> None:
        decoder = Decoder(spec, primitive=False)
        random = torch.Generator().manual_seed(1)
        for name, parameter in decoder.named_parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) * (0.2 if "norm" not in name else 1.0)
        if spec.tied_head:
            decoder.head.proj.weight = decoder.embed.weight
        self.decoder = decoder

    def get(self, name: str) -> Tensor:
        return self.decoder.get_parameter(name).detach().clone()

    def fill(self, module: nn.Module, prefix: str) -> None:
        raise AssertionError("rotated weights are asked one by one")


def spec_with(**changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 50,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 12,
        "layers": (LayerSpec(), LayerSpec()),
        "ropes": (RopeSpec(inv_freq=(1.0, 0.3, 0.1, 0.03, 0.01, 0.003)),),
        "attention_scale": 0.3,
        "bos_id": 1,
    }
    return ModelSpec(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_head": False},
        {"tied_head": False, "head_bias": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"qk_norm": "head", "logit_softcap": 20.0, "embed_scale": 7.0},
        {"qk_norm": "full"},
        {"parallel_residual": True, "num_kv_heads": 1},
        {"post_norm": True, "pre_norm": False},
        {"post_norm": True},
        {"norm": "layer", "norm_bias": True, "qkv_bias": True},
    ],
    ids=str,
)
def test_a_rotated_model_is_the_same_function(changes: dict[str, Any]) -> None:
    spec = spec_with(**changes)
    weights = Weights(spec)
    rotated_spec, source = rotate(spec, weights)
    rotated = Decoder(rotated_spec, primitive=False)
    source.fill(rotated, "")
    assert rotated_spec.head_mix == (spec.tied_head and rotates_stream(spec) is None)
    moved = [n for n, p in rotated.named_parameters() if n != "head.mix.weight" and not torch.equal(p, weights.get(n))]
    assert "layers.0.attn.v_proj.weight" in moved
    assert ("embed.weight" in moved) == (rotates_stream(spec) is None)
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference, result = weights.decoder(ids)[0], rotated(ids)[0]
    assert float((result - reference).abs().max()) < 1e-4 * float(reference.abs().max())


def test_weights_with_outliers_round_better_when_rotated() -> None:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 192, generator=random)
    weight[:, ::48] *= 12.0
    encoding, matrix = WeightEncoding(bits=4), random_hadamard(192).float()

    def error(w: Tensor) -> float:
        return float((fake_quantize_weight(w, encoding) - w).square().mean())

    assert error(weight @ matrix) < 0.5 * error(weight)


def test_a_rotated_head_s_mix_keeps_what_lies_beside_its_diagonal() -> None:
    """R^T diag(gain) R has the gains' mean on its diagonal: rounded to nearest, nearly all else would be 0."""
    spec = spec_with(hidden_size=64, layers=(LayerSpec(),))
    plain = Weights(spec)
    random = torch.Generator().manual_seed(7)
    plain.decoder.head.norm.weight.data = 1.8 + 0.1 * torch.randn(64, generator=random)
    rotated, weights = rotate(spec, plain)
    # Hidden states as models have them: most of their energy in few directions.
    spread = torch.logspace(0, -4, 64) * torch.randn(8, 40, 64, generator=random)
    stream = Stream(spread @ random_hadamard(64, seed=9).float(), torch.zeros(1, 0, 64))
    rows = torch.nn.functional.rms_norm(stream.content, (64,))
    mix, errors = weights.get("head.mix.weight"), {}
    for rounding in ("clip", "gptq"):
        recipe = Recipe(name="test", weights=rounding)
        ids = torch.zeros((8, 40), dtype=torch.int64)
        piece = embedding_and_head(rotated, weights, ids, stream, SCHEMES["w8a8"], recipe, has_prefix=False)
        errors[rounding] = float((rows @ (real_weight(piece.tensors, "head.mix.weight") - mix).T).norm())
    assert errors["gptq"] < 0.5 * errors["clip"]
