"""Torture list, cases 8, 18, 19 and 52: names that lead elsewhere, odd names, outputs in the way of the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from build import (
    hub_snapshot,
    llama_tensors,
    read_index,
    refusal,
    write_index,
    write_model,
    write_sharded_model,
)
from safetensors.torch import save_file

from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.io.paths import check_output, inside
from mobileicsa.io.staging import Staging

NORM = "model.norm.weight"


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


@pytest.mark.parametrize("root", ["model", "."])
@pytest.mark.parametrize(
    "name", ["../model-secret/x", "link", "folder/x", "hard", "/etc/passwd", "", "a\\..\\b", "C:x"]
)
def test_fault_52_external_data_that_leads_outside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, name: str
) -> None:
    model, secret = tmp_path / "model", tmp_path / "model-secret"
    model.mkdir()
    secret.mkdir()
    (secret / "x").write_text("secret")
    (model / "link").symlink_to(secret / "x")
    (model / "folder").symlink_to(secret)
    (model / "hard").hardlink_to(secret / "x")
    monkeypatch.chdir(model if root == "." else tmp_path)
    # Path("") is the empty base directory that other readers take as "no check".
    with pytest.raises(InputError):
        inside(Path("" if root == "." else root), name)


def test_fault_52_links_that_stay_inside_are_read(tmp_path: Path) -> None:
    (tmp_path / "weights.data").write_text("x")
    (tmp_path / "soft").symlink_to("weights.data")
    (tmp_path / "hard").hardlink_to(tmp_path / "weights.data")
    for name in ("weights.data", "soft", "hard", "not/yet/there"):
        assert inside(tmp_path, name) == tmp_path / name


def test_fault_52_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError):
        inside(tmp_path, "loop")
