"""Torture list, cases 51, 54 and 59: damaged, exchanged, outdated artifacts, and golden vectors that do not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from artifacts import DAMAGE, command, flip, in_a_process, sign
from mobileicsa_export.executorch import DIGEST_FILE, MODEL_FILE, sha256
from safetensors.torch import load_file, save_file

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import ARTIFACT_FORMAT
from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import PLAN_FORMAT, QuantPlan
from mobileicsa.io.json_file import dump_json

ONNX_FILES = ("onnx/model.onnx", "onnx/model_prefill.onnx", "onnx/model.onnx.data")
PTE_FILES = ("executorch/model.pte", "executorch/model.pte.sha256")
SHARED_FILES = (layout.WEIGHTS, layout.PLAN, layout.TOKENIZER)
# What a run on each back end reads.
READ = {"onnx": (*SHARED_FILES, *ONNX_FILES), "executorch": (*SHARED_FILES, *PTE_FILES), "simulator": SHARED_FILES}
CHECKED = (*SHARED_FILES, *ONNX_FILES, *PTE_FILES, layout.GOLDEN, layout.GREEDY, layout.CONFIG, layout.RECIPE)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


def verify(capfd: Capture, folder: Path) -> tuple[int, str]:
    ran = command(capfd, "verify", str(folder), "--no-save")
    return ran.code, " ".join(ran.document.get("problems", [])) or str(ran.document.get("error", ""))


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_51_verify_names_a_damaged_file(folder: Path, capfd: Capture, name: str, damage: str) -> None:
    DAMAGE[damage](folder / name)
    code, said = verify(capfd, folder)
    assert code == 5
    assert f"{name}: " in said


@pytest.mark.parametrize(("backend", "name"), [(b, n) for b, names in READ.items() for n in names])
@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_51_run_names_a_damaged_file(folder: Path, capfd: Capture, backend: str, name: str, damage: str) -> None:
    DAMAGE[damage](folder / name)
    ran = command(capfd, "run", str(folder), "--backend", backend, "--prompt", "a", "--max-new-tokens", "1")
    assert ran.code == 5
    assert name in ran.document["error"]["message"]


@pytest.mark.parametrize("name", [*SHARED_FILES, *ONNX_FILES, layout.GOLDEN, layout.GREEDY])
def test_fault_51_a_file_of_another_artifact_is_named(
    folder: Path, other_artifact: Path, capfd: Capture, name: str
) -> None:
    if (other_artifact / name).read_bytes() == (folder / name).read_bytes():
        pytest.skip("both artifacts have the same tokenizer")
    shutil.copy(other_artifact / name, folder / name)
    code, said = verify(capfd, folder)
    assert code == 5
    assert f"{name}: " in said


@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_51_a_damaged_manifest_is_named(folder: Path, capfd: Capture, damage: str) -> None:
    DAMAGE[damage](folder / layout.MANIFEST)
    for arguments in (("verify",), ("run", "--prompt", "a")):
        ran = command(capfd, arguments[0], str(folder), *arguments[1:])
        assert ran.code == 5
        assert layout.MANIFEST in ran.document["error"]["message"]


def test_fault_51_the_manifest_of_another_artifact_is_named(folder: Path, other_artifact: Path, capfd: Capture) -> None:
    shutil.copy(other_artifact / layout.MANIFEST, folder / layout.MANIFEST)
    code, said = verify(capfd, folder)
    assert code == 5
    assert layout.WEIGHTS in said


@pytest.mark.parametrize("place", range(0, 100, 4))
def test_fault_51_no_flipped_bit_of_the_manifest_goes_unseen(folder: Path, capfd: Capture, place: int) -> None:
    path = folder / layout.MANIFEST
    data = bytearray(path.read_bytes())
    data[len(data) * place // 100] ^= 2
    path.write_bytes(bytes(data))
    assert command(capfd, "verify", str(folder), "--no-save").code == 5


@pytest.mark.parametrize(("backend", "name"), [("executorch", PTE_FILES[0]), ("onnx", ONNX_FILES[2])])
def test_fault_51_a_process_survives_damaged_files(folder: Path, backend: str, name: str) -> None:
    flip(folder / name)
    ran = in_a_process("run", str(folder), "--backend", backend, "--prompt", "a", "--max-new-tokens", "1")
    assert ran.code == 5
    assert name in ran.said


def test_fault_51_a_process_survives_a_cut_pte_whose_hashes_fit(folder: Path) -> None:
    model = folder / "executorch" / MODEL_FILE
    DAMAGE["halved"](model)
    (model.parent / DIGEST_FILE).write_text(f"{sha256(model)}  {MODEL_FILE}\n")
    sign(folder)
    ran = in_a_process("run", str(folder), "--backend", "executorch", "--prompt", "a", "--max-new-tokens", "1")
    assert ran.code == 5
    assert MODEL_FILE in ran.said


@pytest.mark.parametrize("arguments", [("verify",), ("run", "--prompt", "a"), ("bench",), ("inspect",)])
def test_fault_54_a_newer_artifact_names_the_version_it_needs(
    folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("mobileicsa.artifact.manifest.ARTIFACT_FORMAT", ARTIFACT_FORMAT + 1)
    sign(folder, mobileicsa_version="9.9.0")
    monkeypatch.undo()
    ran = command(capfd, arguments[0], str(folder), *arguments[1:])
    assert ran.code == 3
    assert f"artifact format {ARTIFACT_FORMAT + 1}" in ran.document["error"]["message"]
    assert "mobileicsa >= 9.9.0" in ran.document["error"]["hint"]


def test_fault_54_an_artifact_of_format_1_is_read_as_it_is(folder: Path, capfd: Capture) -> None:
    greedy = json.loads((folder / layout.GREEDY).read_text())
    for row in greedy["prompts"]:
        del row["prompt_ids"]
    (folder / layout.GREEDY).write_bytes(dump_json(greedy))
    sign(folder)
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    del manifest["checksum"]
    (folder / layout.MANIFEST).write_bytes(dump_json({**manifest, "format": 1}))
    ran = command(capfd, "verify", str(folder), "--no-save", "--no-greedy")
    assert ran.code == 0
    assert ran.document["ok"]


@pytest.mark.parametrize("version", [0, -1, "2", None, 1.0, True])
def test_fault_54_a_format_that_never_was_is_a_damaged_manifest(folder: Path, capfd: Capture, version: object) -> None:
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    (folder / layout.MANIFEST).write_bytes(dump_json({**manifest, "format": version}))
    ran = command(capfd, "verify", str(folder))
    assert ran.code == 5
    assert "field format" in ran.document["error"]["message"]


def test_fault_54_a_newer_plan_is_an_input_error(artifact: Path) -> None:
    plan = json.loads((artifact / layout.PLAN).read_text())
    with pytest.raises(InputError, match=f"plan format {PLAN_FORMAT + 1} is newer") as caught:
        QuantPlan.from_json({**plan, "format": PLAN_FORMAT + 1})
    assert caught.value.exit_code == 3


def change_golden(folder: Path, name: str) -> None:
    """One integer, one unit, signed."""
    tensors = load_file(folder / layout.GOLDEN)
    value = tensors[name].flatten()[7]
    tensors[name].view(-1)[7] = value - 1 if value > 0 else value + 1
    save_file(tensors, folder / layout.GOLDEN)
    sign(folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("3.rows", r"1 of \d+ K/V integers differ from golden/vectors.safetensors by up to 1 steps, first in layer 0"),
        ("3.logits", r"0 of \d+ K/V integers .*; 1 of \d+ logits by up to 1"),
    ],
)
def test_fault_59_one_unit_in_one_golden_integer_fails_with_count_and_layer(
    folder: Path, capfd: Capture, name: str, found: str
) -> None:
    change_golden(folder, name)
    ran = command(capfd, "verify", str(folder), "--no-save", "--no-greedy", "--backend", "simulator")
    assert ran.code == 5
    assert re.search(found, ran.document["backends"]["simulator"]["reason"])


def test_fault_59_a_tokenizer_that_splits_otherwise_fails_by_name(folder: Path, capfd: Capture) -> None:
    path = folder / layout.TOKENIZER
    data = json.loads(path.read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["e"] = vocab["e"], vocab["a"]
    path.write_text(json.dumps(data))
    sign(folder)
    code, said = verify(capfd, folder)
    assert code == 5
    assert said.startswith("tokenizer.json: encodes ")
