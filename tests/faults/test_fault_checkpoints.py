"""Torture list, cases 1 to 6, 16, 17 and 20: broken and hostile weights are refused, by name, before any work."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from build import (
    entry,
    flip_bit,
    hub_snapshot,
    llama_tensors,
    pickle_bomb,
    raw_safetensors,
    read_index,
    refusal,
    write_index,
    write_sharded_model,
)
from safetensors.torch import save_file

from mobileicsa.core.errors import InputError
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.hashing import sha256_file

NORM = "model.norm.weight"


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


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
