"""Torture list, cases 1 to 9 and 15 to 20: broken and hostile model folders are refused, by name, before any work."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from build import (
    CONFIG,
    entry,
    flip_bit,
    llama_tensors,
    pickle_bomb,
    raw_safetensors,
    read_index,
    write_config,
    write_index,
    write_model,
    write_sharded_model,
)
from safetensors.torch import save_file

from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.hashing import sha256_file
from mobileicsa.io.paths import check_output
from mobileicsa.io.staging import Staging

NORM = "model.norm.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def refusal(model: Path) -> str:
    """The message with which the folder is refused."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def weights(model: Path) -> Path:
    return model / "model.safetensors"


_OPENED: list[str] = []
_HOOKED: list[bool] = []


@pytest.fixture
def opened() -> list[str]:
    """Every path that Python opens during the test."""
    if not _HOOKED:  # an audit hook stays for the life of the process
        sys.addaudithook(lambda event, args: _OPENED.append(str(args[0])) if event == "open" else None)
        _HOOKED.append(True)
    _OPENED.clear()
    return _OPENED


def test_a_whole_folder_opens_and_gives_back_its_tensors(model: Path) -> None:
    checkpoint = open_checkpoint(str(model))
    assert checkpoint.tensors.names() == tuple(sorted(llama_tensors()))
    for name, value in llama_tensors().items():
        assert torch.equal(checkpoint.tensors.get(name), value)


def test_fault_01_weights_cut_at_any_byte_are_refused_with_both_sizes(weights: Path) -> None:
    whole = weights.read_bytes()
    for size in (0, 3, 7, 8, 9, 60, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        assert "model.safetensors" in refusal(weights.parent)
    data_bytes = sum(t.numel() * 4 for t in llama_tensors().values())
    assert f"declares {data_bytes} bytes of tensors, the file holds {data_bytes - 1}" in refusal(weights.parent)


@pytest.mark.parametrize("declared", [2**26, 2**62 + 12345, 2**64 - 1])
def test_fault_02_a_header_longer_than_the_file_is_refused_before_allocation(weights: Path, declared: int) -> None:
    weights.write_bytes(declared.to_bytes(8, "little") + b'{"a":' + b" " * 100)
    tracemalloc.start()
    assert f"header of {declared} bytes in a file of 113 bytes" in refusal(weights.parent)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_fault_02_a_header_above_100_megabytes_is_refused_before_allocation(weights: Path) -> None:
    with weights.open("wb") as stream:
        stream.write((150_000_000).to_bytes(8, "little") + b"{")
        stream.truncate(200_000_000)
    tracemalloc.start()
    assert "header of 150000000 bytes" in refusal(weights.parent)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "data_bytes", "told"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "'b' overlaps"),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, 8, "'b' overlaps"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "'b' leaves a hole"),
        ({"a": entry(4, 12, [2])}, 12, "'a' leaves a hole"),
        ({"a": entry(0, 8, [3])}, 8, "'a': 8 bytes for shape [3]"),
        ({"a": entry(8, 0, [2])}, 8, "'a': -8 bytes"),
        ({"a": entry(0, 8, [2])}, 12, "declares 8 bytes of tensors, the file holds 12"),
        ({"a": entry(0, 8, [2**33, 2**33])}, 8, "'a': shape [8589934592, 8589934592] overflows"),
        ({"a": entry(0, 8, [-2])}, 8, "'a': shape and data_offsets"),
        ({"a": entry(0, 8, [True, 2])}, 8, "'a': shape and data_offsets"),
        ({"a": {**entry(0, 8, [2]), "code": "x"}}, 8, "'a': needs exactly"),
        ({"a": [1, 2]}, 8, "'a': needs exactly"),
        ({"__metadata__": {"x": 1}}, 0, "__metadata__"),
    ],
)
def test_fault_03_wrong_extents_are_refused_naming_the_tensor(
    weights: Path, header: dict[str, Any], data_bytes: int, told: str
) -> None:
    weights.write_bytes(raw_safetensors(header, b"\0" * data_bytes))
    assert told in refusal(weights.parent)


def test_fault_03_a_tensor_named_twice_in_a_header_is_refused(weights: Path) -> None:
    one = json.dumps(entry(0, 8, [2])).encode()
    weights.write_bytes(raw_safetensors(b'{"a":' + one + b',"a":' + one + b"}", b"\0" * 8))
    assert "'a' occurs twice" in refusal(weights.parent)


def test_fault_04_a_flipped_bit_is_refused_where_a_hash_is_listed(weights: Path) -> None:
    (weights.parent / "SHA256SUMS").write_text(f"{sha256_file(weights)}  model.safetensors\n")
    open_checkpoint(str(weights.parent))
    flip_bit(weights, -1)
    assert "model.safetensors: SHA-256 is" in refusal(weights.parent)


def test_fault_04_a_flipped_bit_in_the_hub_cache_is_refused_by_its_blob_name(weights: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(weights.parent, tmp_path)
    assert open_checkpoint(str(snapshot)).tensors.names()
    flip_bit((snapshot / "model.safetensors").resolve(), -1)
    assert "model.safetensors: SHA-256 is" in refusal(snapshot)


def test_fault_04_without_a_known_hash_a_flipped_bit_changes_the_identity(weights: Path) -> None:
    before = open_checkpoint(str(weights.parent)).identity
    flip_bit(weights, -4)
    assert open_checkpoint(str(weights.parent)).identity != before


def hub_snapshot(model: Path, tmp_path: Path) -> Path:
    """The folder as the hub cache would hold it: links into blobs."""
    repository = tmp_path / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in model.iterdir():
        blob = blobs / sha256_file(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_fault_05_a_pickle_checkpoint_is_refused_unread(
    weights: Path, tmp_path: Path, opened: list[str], name: str
) -> None:
    canary = tmp_path / "canary"
    weights.unlink()
    (weights.parent / name).write_bytes(pickle_bomb(canary))
    opened.clear()
    assert "only safetensors" in refusal(weights.parent)
    assert not any(path.endswith(name) for path in opened)
    assert not canary.exists()


def test_fault_05_an_index_may_not_name_a_pickle(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle_bomb(tmp_path / "canary"))
    write_index(model, {NORM: "pytorch_model.bin"})
    assert "only safetensors" in refusal(model)
    assert not (tmp_path / "canary").exists()


def test_fault_06_a_pickle_or_zip_named_safetensors_is_refused_as_what_it_is(weights: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    weights.write_bytes(pickle_bomb(canary))
    assert "is a Python pickle" in refusal(weights.parent)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("archive/data.pkl", pickle_bomb(canary))
    weights.write_bytes(archive.getvalue())
    assert "is a zip archive" in refusal(weights.parent)
    torch.save(llama_tensors(), weights)
    assert "is a zip archive" in refusal(weights.parent)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(weights.parent)
    assert not canary.exists()


def test_fault_07_code_fields_of_a_config_are_ignored_and_listed(
    tmp_path: Path, network_attempts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    canary = tmp_path / "canary"
    hostile = {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "trust_remote_code": True,
        "_attn_implementation_internal": "evil/kernel",
        "text_config": {"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}},
    }
    model = write_model(tmp_path / "model", **hostile)
    (model / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(str(model))
    checkpoint.write_tokenizer(tmp_path / "tokenizer")
    assert checkpoint.ignored == (
        "_attn_implementation_internal",
        "auto_map",
        "text_config.auto_map",
        "trust_remote_code",
        "evil.py",
    )
    assert checkpoint.config == {**CONFIG, "text_config": {"model_type": "llama"}}
    assert "evil.py" in caplog.text
    assert "evil" not in sys.modules
    assert not canary.exists()
    assert network_attempts == []


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "a/../../secret.safetensors"])
def test_fault_08_a_shard_name_that_leads_outside_is_refused_unopened(
    tmp_path: Path, opened: list[str], name: str
) -> None:
    model = write_sharded_model(tmp_path / "model")
    save_file(llama_tensors(), tmp_path / "secret.safetensors")
    write_index(model, {**read_index(model), NORM: name})
    opened.clear()
    assert "leads outside the folder" in refusal(model)
    assert not any("secret" in path for path in opened)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_fault_08_links_to_files_outside_are_refused_unopened(
    model: Path, tmp_path: Path, opened: list[str], file: str, link: str
) -> None:
    secret = tmp_path / "secret"
    shutil.move(model / file, secret)
    if link == "symbolic":
        (model / file).symlink_to(secret)
    else:
        (model / file).hardlink_to(secret)
    opened.clear()
    assert f"is a {link} link" in refusal(model)
    assert str(secret) not in opened
    if file == "model.safetensors":
        assert str(model / file) not in opened


def test_fault_08_tokenizer_files_pass_the_same_guard(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    checkpoint = open_checkpoint(str(model))
    with pytest.raises(InputError, match="symbolic link"):
        checkpoint.write_tokenizer(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()


def test_fault_08_a_blobs_folder_that_is_itself_a_link_gives_no_right(model: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(model, tmp_path)
    blobs = snapshot.parents[1] / "blobs"
    shutil.move(blobs, tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refusal(snapshot)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "config.json: not found"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[" * 10_000 + b"]" * 10_000, "nested deeper than 64 at byte 64"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than 64 at byte 320"),
        (b'{"a\\"[[": ' + b"[" * 10_000, "nested deeper than 64"),
        (b'{"hidden_size": NaN}', "NaN is not a JSON number at byte 16"),
        (b'{"hidden_size": -Infinity}', "-Infinity is not a JSON number at byte 16"),
        (b'{"rms_norm_eps": 1e999}', "1e999 is out of range at byte 17"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16 at byte 0"),
        ('{"a": 1}'.encode("utf-16-le"), "NUL at byte 1"),
        (b"\xef\xbb\xbf{}", "byte order mark at byte 0"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a": 1,}', "not valid JSON at byte 8"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "'vocab_size' occurs twice"),
        (b"[1, 2]", "holds a list, not an object"),
        (b'{"hidden_size": {"a": 1}}', "hidden_size has a value of an unexpected kind"),
        (b'{"rope_scaling": [1]}', "rope_scaling has a value of an unexpected kind"),
    ],
)
def test_fault_09_a_broken_config_is_refused_with_its_place(model: Path, content: bytes | None, told: str) -> None:
    (model / "config.json").unlink()
    if content is not None:
        (model / "config.json").write_bytes(content)
    assert told in refusal(model)


def test_fault_09_a_config_of_a_gigabyte_is_refused_after_a_few_megabytes(model: Path) -> None:
    with (model / "config.json").open("wb") as stream:
        stream.truncate(2**30)
    tracemalloc.start()
    assert "larger than" in refusal(model)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
@pytest.mark.parametrize("nested", [False, True])
def test_fault_15_a_quantized_checkpoint_is_refused_with_advice(model: Path, method: str, nested: bool) -> None:
    quantization = {"quantization_config": {"quant_method": method, "bits": 4}}
    write_config(model, **({"text_config": quantization} if nested else quantization))
    told = refusal(model)
    assert f"already quantized ({method})" in told
    assert "dequantise first" in told


def test_fault_16_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    model = write_sharded_model(tmp_path / "model")
    open_checkpoint(str(model))
    (model / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: not found" in refusal(model)


def test_fault_16_a_shard_listed_for_the_wrong_tensors_is_refused(tmp_path: Path) -> None:
    model = write_sharded_model(tmp_path / "model")
    weight_map = read_index(model)
    write_index(model, {**weight_map, NORM: "model-00001-of-00002.safetensors"})
    assert f"'{NORM}' is not in model-00001" in refusal(model)
    del weight_map[NORM]
    write_index(model, weight_map)
    assert f"'{NORM}' of model-00002-of-00002.safetensors is not listed" in refusal(model)


def test_fault_16_a_shard_copied_under_a_second_name_is_refused(tmp_path: Path) -> None:
    model = write_sharded_model(tmp_path / "model")
    shutil.copy(model / "model-00001-of-00002.safetensors", model / "model-00002-of-00002.safetensors")
    assert "is in both model-00001-of-00002.safetensors and model-00002" in refusal(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_fault_17_other_number_formats_are_refused_naming_the_tensor(weights: Path, dtype: torch.dtype) -> None:
    save_file({**llama_tensors(), Q_PROJ: torch.zeros(8, 8).to(dtype)}, weights)
    assert f"tensor '{Q_PROJ}': dtype" in refusal(weights.parent)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fault_17_half_floats_are_accepted_and_widened_exactly(weights: Path, dtype: torch.dtype) -> None:
    short = {name: value.to(dtype) for name, value in llama_tensors().items()}
    save_file(short, weights)
    source = open_checkpoint(str(weights.parent)).tensors
    assert source.get(Q_PROJ).dtype == torch.float32
    assert torch.equal(source.get(Q_PROJ), short[Q_PROJ].float())


def test_fault_17_a_big_endian_file_is_refused(weights: Path) -> None:
    data = weights.read_bytes()
    weights.write_bytes(data[:8][::-1] + data[8:])
    assert "big-endian" in refusal(weights.parent)
    weights.write_bytes(raw_safetensors({"__metadata__": {"byteorder": "big"}, "a": entry(0, 8, [2])}, b"\0" * 8))
    assert "big-endian" in refusal(weights.parent)


ODD_NAMES = ["with space", "emoji 🦙", "a#b?c&d", "نموذج", "CON", "aux.txt", "x" * 255, "quote'\"", "-rf", "new\nline"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_fault_18_odd_folder_names_work_as_model_folders(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(str(write_model(tmp_path / name)))
    assert torch.equal(checkpoint.tensors.get(NORM), llama_tensors()[NORM])
    checkpoint.write_tokenizer(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_fault_18_odd_output_names_work_or_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    if len(name) == 255:
        with pytest.raises(InputError, match="longer than"):
            check_output(output, None, False)
        assert list(tmp_path.iterdir()) == []
        return
    check_output(output, None, False)
    with Staging(output, "0123") as staging:
        staging.write_json("manifest.json", {})
        staging.commit()
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("name", ["\0", "x" * 5000, "~nobody-of-this-name/x", "no such", "", "a/b/c", "x.onnx"])
def test_fault_18_a_name_that_is_no_model_is_refused(name: str, network_attempts: list[str]) -> None:
    with pytest.raises(InputError):
        open_checkpoint(name)
    assert network_attempts == []


@pytest.mark.parametrize("output", ["model", "model/out", "model/deep/er/out", "model/../model/out", "link/out", "."])
@pytest.mark.parametrize("overwrite", [False, True])
def test_fault_19_an_output_in_or_around_the_model_folder_is_refused(model: Path, output: str, overwrite: bool) -> None:
    (model.parent / "link").symlink_to(model)
    before = sorted(model.parent.rglob("*"))
    with pytest.raises(UsageError) as caught:
        check_output(model.parent / output, model, overwrite)
    assert caught.value.exit_code == 2
    assert sorted(model.parent.rglob("*")) == before


@pytest.mark.parametrize(("value", "count"), [(float("nan"), 1), (float("inf"), 3), (-float("inf"), 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fault_20_a_weight_that_is_not_finite_is_refused_with_place_and_count(
    weights: Path, value: float, count: int, dtype: torch.dtype
) -> None:
    bad = llama_tensors()[Q_PROJ].to(dtype)
    bad[5, 3 : 3 + count] = value
    save_file({**llama_tensors(), Q_PROJ: bad}, weights)
    source = open_checkpoint(str(weights.parent)).tensors
    assert torch.isfinite(source.get(NORM)).all()
    with pytest.raises(InputError, match=rf"'{Q_PROJ}'.* {count} of 64 values, first at \[5, 3\]") as caught:
        source.get(Q_PROJ)
    assert caught.value.exit_code == 3
