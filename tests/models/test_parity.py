"""Our decoder equals transformers on a tiny random model of every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import CASES, build, config_of, token_ids
from torch import Tensor

from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.families import SUPPORTED
from mobileicsa.models.load import load_decoder

TOLERANCE = 1e-4


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def in_two_parts(decoder: Decoder, ids: Tensor, split: int) -> Tensor:
    """Logits of a prefill and then of the rest behind its cache."""
    first, cache = decoder(ids[:, :split])
    second, _ = decoder(ids[:, split:], cache)
    return torch.cat((first, second), dim=1)


@pytest.mark.parametrize("primitive", [False, True], ids=["fused", "primitive"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_transformers(case: str, primitive: bool, tmp_path: Path) -> None:
    reference = build(config_of(case), tmp_path)
    decoder = load_decoder(open_checkpoint(str(tmp_path)), primitive=primitive)
    ids = token_ids()
    expected = reference(ids).logits
    logits, cache = decoder(ids)
    assert relative_error(logits, expected) <= TOLERANCE
    assert relative_error(in_two_parts(decoder, ids, 9), expected) <= TOLERANCE
    assert cache[0][0].shape == (2, decoder.spec.num_kv_heads, ids.shape[1], decoder.spec.head_dim)


def test_every_supported_family_has_a_parity_case() -> None:
    assert {kind.model_type for kind, _ in CASES.values()} == set(SUPPORTED)
