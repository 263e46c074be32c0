"""Our decoder equals transformers on a tiny random model of every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import CASES, build, config_of, token_ids
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config

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


@torch.no_grad()
def test_gemma3_with_vision_gives_the_logits_of_its_text_part(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = config_of("gemma3_text_two_ropes").to_dict()
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, attn_implementation="eager")
    reference = build(config, tmp_path)
    decoder = load_decoder(open_checkpoint(str(tmp_path)))
    ids = token_ids()
    assert relative_error(decoder(ids)[0], reference(ids).logits) <= TOLERANCE


@torch.no_grad()
def test_smollm2_has_the_logits_that_transformers_gave_once(smollm2: Path) -> None:
    # "The capital of France is"; recorded from transformers' float32 model of the same GGUF file.
    decoder = load_decoder(open_checkpoint(str(smollm2)))
    last = decoder(torch.tensor([[1, 504, 3575, 282, 4649, 314]]))[0][0, -1]
    values, ids = last.topk(5)
    assert ids.tolist() == [7042, 3692, 2250, 260, 450]
    recorded = torch.tensor([15.414030, 11.647411, 11.250313, 11.133543, 11.074192])
    assert relative_error(values, recorded) <= TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_logits_equal_transformers(smollm2: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor(
        [[1, 504, 2465, 282, 4649, 314, 3575, 28, 284, 260], [1, 19556, 28, 638, 359, 346, 47, 198, 2, 1]]
    )
    expected = reference(ids).logits
    for primitive in (False, True):
        decoder = load_decoder(open_checkpoint(str(smollm2)), primitive=primitive)
        assert relative_error(decoder(ids)[0], expected) <= TOLERANCE
        assert relative_error(in_two_parts(decoder, ids, 6), expected) <= TOLERANCE
