"""Loading float weights: memory, folding, special tokens, layers one at a time."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from checkpoints import CONFIG, DictSource, checkpoint, llama_tensors

from mobileicsa.models.decoder import Decoder, DecoderLayer
from mobileicsa.models.load import FloatWeights, check_tensors, empty_weights, load_decoder, read_spec


def source_of(tensors: dict[str, torch.Tensor]) -> DictSource:
    return DictSource(tensors)


def test_attention_scale_is_folded_in_q_and_nowhere_else() -> None:
    opened = checkpoint()
    weights = FloatWeights(read_spec(opened), opened.tensors)
    stored = llama_tensors()
    assert torch.equal(weights.get("layers.1.attn.q_proj.weight"), stored["model.layers.1.self_attn.q_proj.weight"] / 2)
    assert torch.equal(weights.get("layers.1.attn.k_proj.weight"), stored["model.layers.1.self_attn.k_proj.weight"])


def test_attention_scale_is_folded_in_the_gain_where_q_is_normed() -> None:
    spec = replace(read_spec(checkpoint()), model_type="qwen3", qk_norm="head")
    tensors = llama_tensors()
    for part in ("q_norm", "k_norm"):
        for index in range(2):
            tensors[f"model.layers.{index}.self_attn.{part}.weight"] = torch.ones(4)
    weights = FloatWeights(spec, source_of(tensors))
    assert weights.get("layers.0.attn.q_norm.weight").tolist() == [0.5] * 4
    assert weights.get("layers.0.attn.k_norm.weight").tolist() == [1.0] * 4
    assert torch.equal(weights.get("layers.0.attn.q_proj.weight"), tensors["model.layers.0.self_attn.q_proj.weight"])


def test_one_layer_alone_equals_that_layer_of_the_decoder() -> None:
    opened = checkpoint()
    spec = read_spec(opened)
    with empty_weights():
        layer = DecoderLayer(spec, 1)
    FloatWeights(spec, opened.tensors).fill(layer, "layers.1.")
    whole = load_decoder(opened, primitive=True).layers[1].state_dict()
    assert whole.keys() == layer.state_dict().keys()
    assert all(torch.equal(whole[name], value) for name, value in layer.state_dict().items())


def test_empty_weights_take_no_memory_but_constants_are_real() -> None:
    with empty_weights():
        decoder = Decoder(read_spec(checkpoint()), primitive=True)
    assert all(parameter.is_meta for parameter in decoder.parameters())
    constants = dict(decoder.named_buffers())
    assert float(constants["layers.0.attn_norm.inverse_size"]) == 1 / 16
    assert not any(constant.is_meta for constant in constants.values())


def test_loading_reads_each_tensor_once_and_shares_a_tied_head() -> None:
    tensors = llama_tensors()
    del tensors["lm_head.weight"]
    opened = checkpoint(CONFIG | {"tie_word_embeddings": True}, tensors)
    decoder = load_decoder(opened)
    assert sorted(opened.tensors.read) == sorted(tensors)
    assert decoder.head.proj.weight is decoder.embed.weight
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in decoder.parameters())


def test_special_tokens_come_from_the_generation_config_first() -> None:
    spec = read_spec(checkpoint(generation={"eos_token_id": [7, 2, 7]}))
    assert (spec.bos_id, spec.eos_ids) == (1, (7, 2))


def test_special_token_outside_the_vocabulary_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        spec = read_spec(checkpoint(generation={"eos_token_id": [2, 32]}))
    assert spec.eos_ids == (2,)
    assert "outside the vocabulary of 32" in caplog.text


def test_derived_tables_of_old_checkpoints_are_no_surprise() -> None:
    tensors = llama_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    opened = checkpoint(tensors=tensors)
    assert check_tensors(read_spec(opened), opened.tensors) == []
