"""Adapters that are broken or hostile: any config and any tensors end in an adapter or in one `InputError` that says
which file, which field and what to do; nothing of them is ever run."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_adapter import CONFIG, write_adapter
from tiny_artifact import write_checkpoint
from tiny_command import Tiny

from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.methods.peft_vector import PeftVector
from mobileicsa.models.adapter import read_adapter
from mobileicsa.models.adapter_config import HARMLESS, REFUSED
from mobileicsa.models.load import read_spec

CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
Tensors = dict[str, torch.Tensor]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["../../etc/passwd", "/etc/passwd", "none", "all-linear", "q_proj", "(", "(a+)+", 10**400, -1])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted({*HARMLESS, *REFUSED})) | st.text(max_size=10)
CONFIGS = st.dictionaries(FIELDS, VALUES, min_size=1, max_size=4)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_spec(open_checkpoint(str(write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint"))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test, which are written over each other."""
    return write_adapter(tmp_path_factory.mktemp("fuzz") / "tiny")


def outcome(read: Callable[[], Any]) -> Any:
    """What `read` returns, or the one error that it may raise."""
    try:
        return read()
    except InputError as error:
        return error


def check(folder: Path, spec: ModelSpec) -> InputError | None:
    """Both readers: finite numbers, or an error that names the folder and a remedy."""
    vector = outcome(lambda: PeftVector.load(folder))
    assert isinstance(vector, InputError) or torch.isfinite(vector.vector()).all()
    found = outcome(lambda: read_adapter(folder, spec))
    if isinstance(found, InputError):
        assert str(folder) in found.message
        assert found.hint
        assert len(found.message) < 2000
        return found
    assert all(torch.isfinite(update.up).all() and update.rank >= 1 for update in found.updates.values())
    return None


@settings(max_examples=150, deadline=None)
@given(CONFIGS)
@example({"lora_alpha": 10**400})
@example({"r": 2**70})
@example({"target_modules": "(" * 900})
def test_any_config_is_read_or_refused(folder: Path, spec: ModelSpec, changes: dict[str, Any]) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps({**CONFIG, **changes}))
    check(folder, spec)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.sampled_from([CONFIG_FILE, TENSOR_FILE]), st.floats(0, 1))
def test_any_damage_to_a_file_is_read_or_refused(
    folder: Path, spec: ModelSpec, data: bytes, file: str, place: float
) -> None:
    path = folder / file
    whole = path.read_bytes()
    at = int(place * len(whole))
    path.write_bytes(whole[:at] + data + whole[at + len(data) :])
    try:
        check(folder, spec)
    finally:
        path.write_bytes(whole)


SHAPES = st.lists(st.integers(0, 40), max_size=3)
NAMES = st.sampled_from([A, B, A.replace("_A", "_C"), Q, "", "x" * 300 + ".lora_A.weight", A.replace(".weight", "")])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES | st.text(max_size=20), SHAPES, max_size=4), st.sampled_from([0.0, 1.0, math.nan, 3e38]))
def test_any_tensors_are_read_or_refused(
    folder: Path, spec: ModelSpec, shapes: dict[str, list[int]], value: float
) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG))
    path = folder / TENSOR_FILE
    whole = path.read_bytes()
    names = {name: shape for name, shape in shapes.items() if name}
    save_file({**load_file(path), **{name: torch.full(shape, value) for name, shape in names.items()}}, path)
    try:
        check(folder, spec)
    finally:
        path.write_bytes(whole)


def change(edit: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / TENSOR_FILE)
        edit(tensors)
        save_file(tensors, folder / TENSOR_FILE)

    return apply


def config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / CONFIG_FILE).write_text(json.dumps({**CONFIG, **changes}))

    return apply


CASES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "r is text": (config(r="4"), CONFIG_FILE, "r is '4'"),
    "r is negative": (config(r=-4), CONFIG_FILE, "r is -4"),
    "r is huge": (config(r=2**40), CONFIG_FILE, "r is 1099511627776"),
    "r is of other tensors": (config(r=8), TENSOR_FILE, "q_proj"),
    "r is a fraction": (config(r=4.5), CONFIG_FILE, "r is 4.5"),
    "alpha is NaN": (config(lora_alpha=math.nan), CONFIG_FILE, "NaN"),
    "alpha is no float any more": (config(lora_alpha=10**400), CONFIG_FILE, "lora_alpha"),
    "alpha is huge": (config(lora_alpha=1e300), CONFIG_FILE, "lora_alpha"),
    "alpha and factors are huge": (change(lambda t: t[B].fill_(3e38)), CONFIG_FILE, "lora_alpha"),
    "DoRA": (config(use_dora=True), CONFIG_FILE, "use_dora"),
    "a base of another kind": (config(base_model_name_or_path=["x"]), CONFIG_FILE, "base_model_name_or_path"),
    "a pattern that never ends": (config(rank_pattern={"(a+)+": 4}), CONFIG_FILE, "rank_pattern"),
    "a pattern of many wildcards": (config(target_modules=".*" * 20 + "x"), CONFIG_FILE, "target_modules"),
    "a repetition beyond numbers": (config(target_modules="a{99999999999999999999}"), CONFIG_FILE, "target_modules"),
    "too many patterns": (config(alpha_pattern={str(n): 1 for n in range(1001)}), CONFIG_FILE, "alpha_pattern"),
    "no A": (change(lambda t: t.pop(A)), TENSOR_FILE, "no lora_A"),
    "A twice": (change(lambda t: t.update({A.removeprefix("base_model.model."): t[A].clone()})), TENSOR_FILE, "same"),
    "a factor without sides": (change(lambda t: t.update({A: torch.tensor(1.0)})), TENSOR_FILE, "shape []"),
    "a factor of another shape": (change(lambda t: t.update({A: torch.ones(4, 33)})), TENSOR_FILE, "[4, 33]"),
    "NaN": (change(lambda t: t[A].fill_(math.nan)), TENSOR_FILE, "NaN"),
    "integers": (change(lambda t: t.update({A: t[A].to(torch.int32)})), TENSOR_FILE, "I32"),
    "cut off": (lambda f: (f / TENSOR_FILE).write_bytes((f / TENSOR_FILE).read_bytes()[:-3]), TENSOR_FILE, "bytes"),
    "nothing in it": (change(lambda t: t.clear()), TENSOR_FILE, "no tensors"),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), CONFIG_FILE, "not found"),
}


@pytest.mark.parametrize("name", CASES)
def test_fault_adapter_names_file_and_field(tmp_path: Path, spec: ModelSpec, name: str) -> None:
    folder = write_adapter(tmp_path / "tiny")
    spoil, file, words = CASES[name]
    spoil(folder)
    error = check(folder, spec)
    assert error is not None
    assert file in error.message
    assert words in error.message


def test_a_base_that_is_a_path_elsewhere_is_a_name_and_no_path(
    tmp_path: Path, spec: ModelSpec, opened: list[str]
) -> None:
    folder = write_adapter(tmp_path / "tiny", base_model_name_or_path="../../secret")
    (tmp_path.parent / "secret").mkdir(exist_ok=True)
    assert read_adapter(folder, spec).config.base_name == "../../secret"
    assert not any("secret" in path for path in opened)


def test_a_file_that_is_a_link_elsewhere_is_not_read(tmp_path: Path, spec: ModelSpec) -> None:
    folder = write_adapter(tmp_path / "tiny")
    shutil.move(folder / TENSOR_FILE, tmp_path / "secret.safetensors")
    (folder / TENSOR_FILE).symlink_to(tmp_path / "secret.safetensors")
    error = check(folder, spec)
    assert error is not None
    assert "symbolic link" in error.message


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def test_nothing_of_an_adapter_is_run(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, network_attempts: list[str]
) -> None:
    """What peft itself would import or unpickle: code named by the config, a pickle beside or in place of tensors."""
    canary = tmp_path / "canary"
    mapping = {"base_model_class": "Evil", "parent_library": "evil_adapter"}
    folder = write_adapter(tmp_path / "tiny", auto_mapping=mapping, base_model_name_or_path="evil/base")
    (folder / "evil_adapter.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Payload(canary)))
    monkeypatch.syspath_prepend(str(folder))
    assert read_adapter(folder, spec).updates
    (folder / TENSOR_FILE).write_bytes(pickle.dumps(_Payload(canary)))
    error = check(folder, spec)
    assert error is not None
    assert "pickle" in error.message
    assert not canary.exists()
    assert "evil_adapter" not in sys.modules
    assert network_attempts == []


def test_the_command_says_it_in_one_error(tiny: Tiny) -> None:
    folder = write_adapter(tiny.folder / "spoilt", lora_alpha=10**400)
    ran = tiny.quantize("--adapter", str(folder), "--dry-run")
    assert ran.code == 3
    assert CONFIG_FILE in ran.message
    assert "lora_alpha" in ran.message
    assert "Traceback" not in ran.notes
