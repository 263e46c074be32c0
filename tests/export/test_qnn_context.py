"""Compiled models of the HTP and their binaries: damage is found before the emulator reads anything, which need not
be installed for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from mobileicsa_export.qnn_context import BINARY, CONTEXT_OP, LOGITS, check_context, describe, outside_nodes
from qnn_models import htp_target
from tiny_frozen import tiny_spec

from mobileicsa.core.errors import MobileICSAError, VerificationError
from mobileicsa.program.methods import input_names, output_names

SPEC = tiny_spec()
FACTS = {"method": "decode", "mobileicsa_version": "0", "target": htp_target().name, LOGITS: "[0.5, 7]"}


def compiled(folder: Path, binary: str = "decode_ctx_qnn.bin") -> Path:
    """A model as the compiler writes it, of bytes that are no context."""
    (folder / "decode_ctx_qnn.bin").write_bytes(bytes(range(256)) * 16)
    inputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8)) for name in input_names(SPEC)]
    node = ir.node(
        CONTEXT_OP,
        inputs,
        {BINARY: binary},
        domain="com.microsoft",
        num_outputs=len(output_names(SPEC)),
        name="context",
    )
    for value, name in zip(node.outputs, output_names(SPEC), strict=True):
        value.name, value.type = name, ir.TensorType(ir.DataType.UINT8)
        value.shape = ir.Shape([1, 1, SPEC.vocab_size])
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 21, "com.microsoft": 1}, name="decoder")
    path = folder / "decode_ctx.onnx"
    ir.save(ir.Model(graph, ir_version=10), path)
    return path


def check(path: Path) -> tuple[np.float32, int]:
    return check_context(path, SPEC, "decode", htp_target())


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = compiled(tmp_path)
    describe(path, FACTS)
    return path


def test_a_sound_file_gives_the_encoding_of_its_logits(sound: Path) -> None:
    assert check(sound) == (0.5, 7)
    assert outside_nodes(sound) == []


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", lambda data: data + b"\0"])
def test_a_damaged_binary_is_a_verification_error(sound: Path, damage: Callable[[bytes], bytes]) -> None:
    binary = sound.with_name("decode_ctx_qnn.bin")
    binary.write_bytes(damage(binary.read_bytes()))
    with pytest.raises(VerificationError, match=r"decode_ctx_qnn\.bin: is not what decode_ctx\.onnx says") as caught:
        check(sound)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["decode_ctx.onnx", "decode_ctx_qnn.bin"])
def test_a_missing_file_is_a_verification_error(sound: Path, name: str) -> None:
    sound.with_name(name).unlink()
    with pytest.raises(VerificationError, match=f"{name}: is missing"):
        check(sound)


@pytest.mark.parametrize("lost", [1, 10, 100, 1000, None])
def test_a_truncated_model_is_a_verification_error(sound: Path, lost: int | None) -> None:
    sound.write_bytes(sound.read_bytes()[: -lost if lost else 0])
    with pytest.raises(VerificationError, match=r"decode_ctx\.onnx"):
        check(sound)


def test_bit_flips_never_end_in_anything_but_one_of_our_errors(sound: Path) -> None:
    data, random = sound.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(data), 60):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(0, 8))
        sound.write_bytes(flipped)
        try:
            check(sound)
        except MobileICSAError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "prefill"}, "holds the method prefill"),
        ({"target": "other"}, "was written for target other"),
        ({LOGITS: "[0.5"}, LOGITS),
        ({LOGITS: "7"}, LOGITS),
    ],
)
def test_a_model_that_says_something_else_is_a_verification_error(
    sound: Path, changes: dict[str, str], message: str
) -> None:
    describe(sound, changes)
    with pytest.raises(VerificationError, match=message):
        check(sound)


def test_a_binary_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "out.bin").write_bytes(b"x")
    with pytest.raises(MobileICSAError, match="outside the folder"):
        describe(compiled(folder, binary="../out.bin"), FACTS)
