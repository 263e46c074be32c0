"""Opening a checkpoint: what is kept of its config, its hashes, its tokenizer; and the rule that tests stay offline."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobileicsa.core.errors import InputError
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.config_filter import filter_config
from mobileicsa.io.hashing import sha256_parts, sha256_tree
from mobileicsa.io.staging import Staging
from mobileicsa.io.tensors import SafetensorsSource

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4), "c": torch.zeros(2, 2)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_config(folder, model_type="llama", hidden_size=8)
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_config(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def split(folder: Path) -> None:
    """Turn the single file into two shards."""
    tensors = load_file(folder / "model.safetensors")
    shards = {"model-1.safetensors": ["a"], "model-2.safetensors": ["b", "c"]}
    for file, names in shards.items():
        save_file({name: tensors[name].clone() for name in names}, folder / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_shards_give_the_same_tensors_as_one_file(model: Path) -> None:
    split(model)
    source = SafetensorsSource(model)
    assert source.names() == ("a", "b", "c")
    for name, value in TENSORS.items():
        assert source.shape(name) == tuple(value.shape)
        assert torch.equal(source.get(name), value)


def test_a_tensor_is_fresh_each_time_so_that_callers_may_change_it(model: Path) -> None:
    source = SafetensorsSource(model)
    source.get("b").zero_()
    assert torch.equal(source.get("b"), TENSORS["b"])
    kept, path = source.get("b"), model / "model.safetensors"
    with path.open("r+b") as stream:
        stream.seek(-64, os.SEEK_END)
        stream.write(b"\0" * 64)
    assert torch.equal(kept, TENSORS["b"])


def test_a_tensor_that_does_not_exist_is_an_input_error(model: Path) -> None:
    for ask in (SafetensorsSource(model).get, SafetensorsSource(model).shape):
        with pytest.raises(InputError, match="tensor 'x' is missing"):
            ask("x")


def test_identity_changes_with_any_weight_and_any_read_field_only(model: Path) -> None:
    first = open_checkpoint(str(model)).identity
    (model / "README.md").write_text("x")
    write_config(model, hidden_size=8, model_type="llama", auto_map={"a": "b"})
    assert open_checkpoint(str(model)).identity == first
    write_config(model, hidden_size=9, model_type="llama")
    second = open_checkpoint(str(model)).identity
    write_config(model, hidden_size=8, model_type="llama")
    save_file({**TENSORS, "b": torch.ones(4) * 2}, model / "model.safetensors")
    assert len({first, second, open_checkpoint(str(model)).identity}) == 3


def test_rope_and_text_config_are_kept_by_their_own_allow_lists() -> None:
    raw = {
        "model_type": "gemma3",
        "text_config": {"hidden_size": 8, "rope_scaling": {"factor": 8.0, "code": "x"}, "new_trick": 1},
        "rope_parameters": {"full_attention": {"rope_theta": 1e6, "evil": 1}, "sliding_attention": {"rope_theta": 1e4}},
        "rope_scaling": None,
        "vision_config": {"hidden_size": 4},
        "use_cache": True,
    }
    config, ignored = filter_config(raw, "config.json")
    assert config == {
        "model_type": "gemma3",
        "text_config": {"hidden_size": 8, "rope_scaling": {"factor": 8.0}},
        "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
        "rope_scaling": None,
    }
    assert ignored == (
        "rope_parameters.full_attention.evil",
        "text_config.new_trick",
        "text_config.rope_scaling.code",
        "vision_config",
    )


def test_generation_ids_come_from_their_own_file_before_the_config(model: Path) -> None:
    write_config(model, model_type="llama", bos_token_id=1, eos_token_id=2, pad_token_id=None)
    assert open_checkpoint(str(model)).generation == {"bos_token_id": 1, "eos_token_id": 2}
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.6}')
    assert open_checkpoint(str(model)).generation == {"bos_token_id": 1, "eos_token_id": [2, 7]}
    (model / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(InputError, match="eos_token_id is '</s>', not a token id"):
        open_checkpoint(str(model))


def test_only_the_tokenizers_own_files_are_copied(model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "chat_template.jinja", "tokenization_evil.py", "notes.json"):
        (model / name).write_text("{}")
    open_checkpoint(str(model)).write_tokenizer(tmp_path / "new" / "out")
    copied = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    assert copied == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]


def test_a_folder_without_tokenizer_json_says_how_to_make_one(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: not found") as caught:
        open_checkpoint(str(model)).write_tokenizer(tmp_path / "out")
    assert "save_pretrained" in str(caught.value)


def test_a_sha256sums_line_that_is_none_is_refused_with_its_number(model: Path) -> None:
    (model / "SHA256SUMS").write_text("\n" + "0" * 64 + "  other.bin\nnonsense\n")
    with pytest.raises(InputError, match="line 3"):
        open_checkpoint(str(model))


def test_hashes_depend_on_names_and_contents_but_not_on_order(tmp_path: Path) -> None:
    assert sha256_parts([("a", "1"), ("b", "2")]) == sha256_parts([("b", "2"), ("a", "1")])
    assert sha256_parts([("ab", "c")]) != sha256_parts([("a", "bc")])
    digests = set()
    for name, text in (("a", "x"), ("b", "x"), ("b", "y")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        digests.add(sha256_tree(folder))
    assert len(digests) == 3


def test_tied_and_sliced_tensors_are_written_whole(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    with Staging(tmp_path / "out", "0123") as staging:
        staging.write_tensors("x.safetensors", {"a": table, "b": table, "c": table[1:], "d": table.T})
        staging.commit()
    read = load_file(tmp_path / "out" / "x.safetensors")
    assert torch.equal(read["a"], table)
    assert torch.equal(read["b"], table)
    assert torch.equal(read["c"], table[1:])
    assert torch.equal(read["d"], table.T)


def test_an_artifact_file_may_not_be_written_outside_of_the_artifact(tmp_path: Path) -> None:
    with Staging(tmp_path / "out", "0123") as staging, pytest.raises(InputError, match="leads outside"):
        staging.write_bytes("../x", b"")


def test_tests_can_reach_this_machine_but_no_other(network_attempts: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert network_attempts == []
    for reach in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.socket().connect(("192.0.2.1", 80)),
    ):
        with pytest.raises(OSError, match="may not connect"):
            reach()
    assert network_attempts == ["192.0.2.1", "example.org", "192.0.2.1"]
