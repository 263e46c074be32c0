"""Torture list, cases 10 to 14: configs and tensors that no model can be built from, refused before heavy work."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from checkpoints import CONFIG, checkpoint, llama_tensors

from mobileicsa.core.errors import InputError
from mobileicsa.io.checkpoint import Checkpoint
from mobileicsa.models import families
from mobileicsa.models.families import SUPPORTED, spec_from_config
from mobileicsa.models.load import check_tensors, load_decoder, read_spec

PLACE = "tiny/config.json"


def refusal(config: dict[str, Any]) -> InputError:
    """The error of reading this config, raised at once."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        spec_from_config(config, PLACE)
    assert time.monotonic() - start < 1.0
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 10**12),
        ("vocab_size", 0),
        ("vocab_size", None),
        ("vocab_size", "32"),
        ("vocab_size", True),
        ("vocab_size", 32.0),
        ("hidden_size", 65_537),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 1001),
        ("intermediate_size", -24),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", [2]),
        ("head_dim", 5),
        ("head_dim", -4),
        ("max_position_embeddings", 10**9),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", "1e-6"),
        ("hidden_act", "quick_gelu"),
        ("hidden_act", ["silu"]),
        ("tie_word_embeddings", "yes"),
        ("rope_theta", 0),
    ],
)
def test_fault_10_bad_size_names_file_field_and_value(field: str, value: object) -> None:
    error = refusal(CONFIG | {field: value})
    assert error.message.startswith(f"{PLACE}: {field} is {value!r}")


def test_fault_10_hidden_size_not_divisible_by_heads() -> None:
    error = refusal(CONFIG | {"hidden_size": 18})
    assert "hidden_size is 18; expected a multiple of num_attention_heads 4" in error.message
    assert error.hint is not None


def test_fault_10_a_required_field_is_missing() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "intermediate_size"}
    assert "intermediate_size is None" in refusal(config).message


def test_fault_11_unknown_model_type_names_nearest_all_supported_and_the_recipe() -> None:
    error = refusal(CONFIG | {"model_type": "qwen4"})
    assert f"{PLACE}: model_type 'qwen4' is not supported; the nearest is qwen" in error.message
    assert error.hint is not None
    assert all(name in error.hint for name in SUPPORTED)
    assert "one file" in error.hint


@pytest.mark.parametrize("name", ["decoder", "load", "..io.hub", "os", "x" * 10_000, "", None, 7, ["llama"]])
def test_fault_11_no_module_is_imported_for_an_unknown_name(name: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(module: str) -> None:
        raise AssertionError(f"imported {module}")

    monkeypatch.setattr(families.importlib, "import_module", forbidden)
    error = refusal(CONFIG | {"model_type": name})
    assert len(error.message) < 400


def test_fault_12_missing_tensor_is_named() -> None:
    tensors = llama_tensors()
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    opened = checkpoint(tensors=tensors)
    with pytest.raises(InputError, match=r"tensor 'model\.layers\.1\.self_attn\.k_proj\.weight' is missing"):
        load_decoder(opened)
    assert not any("layers" in name for name in opened.tensors.read)


def test_fault_12_wrong_shape_names_tensor_and_both_shapes() -> None:
    tensors = llama_tensors() | {"model.layers.0.mlp.up_proj.weight": torch.zeros(16, 24)}
    opened = checkpoint(tensors=tensors)
    with pytest.raises(InputError, match=r"up_proj\.weight' has shape \[16, 24\], config\.json asks for \[24, 16\]"):
        check_tensors(read_spec(opened), opened.tensors)


def test_fault_12_fused_tensor_with_rows_left_over_is_refused() -> None:
    config = CONFIG | {"model_type": "phi3"}
    tensors = {name: value for name, value in llama_tensors().items() if "_proj" not in name or "o_proj" in name}
    for index in range(2):
        layer = f"model.layers.{index}"
        tensors[f"{layer}.self_attn.qkv_proj.weight"] = torch.zeros(16 + 2 * 8 + 8, 16)
        tensors[f"{layer}.mlp.gate_up_proj.weight"] = torch.zeros(48, 16)
        tensors[f"{layer}.mlp.down_proj.weight"] = torch.zeros(16, 24)
    opened = checkpoint(config, tensors)
    with pytest.raises(InputError, match=r"qkv_proj\.weight' has shape \[40, 16\], config\.json asks for \[32, 16\]"):
        check_tensors(read_spec(opened), opened.tensors)


def test_fault_12_extra_tensors_are_returned_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    opened = checkpoint(tensors=llama_tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)})
    assert check_tensors(read_spec(opened), opened.tensors) == ["model.layers.0.self_attn.q_proj.bias"]
    with caplog.at_level(logging.WARNING):
        load_decoder(opened)
    assert "model.layers.0.self_attn.q_proj.bias" in caplog.text


def head(kind: str, flag: bool) -> Checkpoint:
    """A checkpoint's tensors with a head that is absent, equal to the embedding or different."""
    tensors = llama_tensors()
    if kind == "absent":
        del tensors["lm_head.weight"]
    if kind == "equal":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    return checkpoint(CONFIG | {"tie_word_embeddings": flag}, tensors)


@pytest.mark.parametrize(
    ("kind", "flag", "tied"),
    [
        ("absent", True, True),
        ("equal", True, True),
        ("equal", False, True),
        ("different", True, False),
        ("different", False, False),
    ],
)
def test_fault_13_the_weights_decide_whether_the_head_is_tied(kind: str, flag: bool, tied: bool) -> None:
    opened = head(kind, flag)
    spec = read_spec(opened)
    assert spec.tied_head is tied
    used = opened.tensors.tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
    assert torch.equal(load_decoder(opened).head.proj.weight, used)


def test_fault_13_untied_flag_with_absent_head_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match=r"tie_word_embeddings is false but tensor 'lm_head\.weight' is missing") as e:
        read_spec(head("absent", False))
    assert e.value.hint is not None


def test_fault_13_a_wrong_flag_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_spec(head("different", True))
    assert "the head differs from the embedding: read as not tied" in caplog.text


FAULTY_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"sliding_window": 8}, "sliding_window is 8"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type is 'dynamic'"),
    ({"rope_parameters": {"rope_type": "proportional"}}, "rope_parameters.rope_type is 'proportional'"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is None"),
    ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "rope_scaling.short_factor is [1.0]"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope_parameters is"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"model_type": "stablelm", "partial_rotary_factor": 0.3}, "partial_rotary_factor is 0.3"),
    ({"model_type": "stablelm", "head_dim": 8}, "head_dim is 8"),
    ({"model_type": "olmo2", "sliding_window": 8}, "sliding_window is 8"),
    ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "layer_types is"),
    ({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 2}, "layer_types is"),
    ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types is"),
    ({"model_type": "mistral", "sliding_window": -1}, "sliding_window is -1"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 5.0}}, "rope_parameters is"),
    ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ({"model_type": "gemma3"}, "text_config is None"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers is [1]"),
]


@pytest.mark.parametrize(("options", "expected"), FAULTY_OPTIONS, ids=[text for _, text in FAULTY_OPTIONS])
def test_fault_14_an_option_outside_the_family_is_refused_by_field(options: dict[str, Any], expected: str) -> None:
    assert f"{PLACE}: {expected}" in refusal(CONFIG | options).message
