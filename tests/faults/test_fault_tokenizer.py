"""Torture list, cases 34 and 35: tokenizers that are missing, damaged, too large, or those of another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_artifact import TEXT
from tiny_command import Tiny
from tokenizers import AddedToken, Tokenizer

from mobileicsa.calibrate.text import make_windows
from mobileicsa.core.errors import InputError

VOCABULARY = 259


def edit(tiny: Tiny, name: str, **changes: Any) -> None:
    path = tiny.checkpoint / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **changes}))


def refused(tiny: Tiny, *more: str) -> str:
    """The message of a plan that is refused; nothing has been written."""
    ran = tiny.quantize("--dry-run", *more)
    assert ran.code == 3
    assert tiny.left_behind() == []
    return ran.message


def test_fault_34_a_tokenizer_larger_than_the_embedding_names_token_and_id(tiny: Tiny) -> None:
    path = str(tiny.checkpoint / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens([AddedToken("<extra>")])
    tokenizer.save(path)
    message = refused(tiny)
    assert f"token '<extra>' is id {VOCABULARY}, the embedding has {VOCABULARY} rows" in message


def test_fault_34_an_id_behind_a_gap_is_found_although_there_are_few_tokens(tiny: Tiny) -> None:
    path = tiny.checkpoint / "tokenizer.json"
    data = json.loads(path.read_text())
    # As many tokens as before, one of them far outside.
    data["model"]["vocab"]["z"] = 5000
    path.write_text(json.dumps(data))
    assert "token 'z' is id 5000" in refused(tiny)


def test_fault_34_a_token_outside_of_the_vocabulary_is_refused_with_id_and_place() -> None:
    with pytest.raises(InputError, match=r"file\.txt: token 300 \(number 5\) is outside .* of 259") as caught:
        make_windows("abcdef", lambda text: [9, 9, 9, 9, 9, 300], VOCABULARY, 1, 8, "file.txt")
    assert caught.value.exit_code == 3


def test_fault_34_a_prompt_of_foreign_ids_is_refused(tiny: Tiny) -> None:
    from mobileicsa.artifact.model import QuantizedModel

    assert tiny.quantize().code == 0
    with pytest.raises(InputError, match="token 259 is outside the vocabulary of 259"):
        QuantizedModel.from_pretrained(tiny.output).generate([5, VOCABULARY])


def test_fault_35_a_missing_tokenizer_is_refused_with_advice(tiny: Tiny) -> None:
    (tiny.checkpoint / "tokenizer.json").unlink()
    ran = tiny.quantize()
    assert ran.code == 3
    assert "tokenizer.json: not found" in ran.message
    assert "save_pretrained" in ran.document["error"]["hint"]
    assert tiny.left_behind() == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04pickle", b'{"model": {"type": "BPE"}}', b"[" * 100_000])
def test_fault_35_a_damaged_tokenizer_is_refused(tiny: Tiny, content: bytes) -> None:
    (tiny.checkpoint / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json: not a tokenizer" in refused(tiny)


def test_fault_35_a_model_whose_bos_is_another_token_there_is_refused(tiny: Tiny) -> None:
    edit(tiny, "tokenizer_config.json", bos_token="<s>", eos_token="</s>")
    assert tiny.quantize("--dry-run").code == 0
    edit(tiny, "config.json", bos_token_id=0)
    assert "bos_token '<s>' of the tokenizer is id 1, bos_token_id of the model 0" in refused(tiny)


def test_fault_35_a_bos_token_may_be_an_object(tiny: Tiny) -> None:
    edit(tiny, "tokenizer_config.json", bos_token={"content": "</s>", "special": True})
    assert "bos_token '</s>' of the tokenizer is id 2, bos_token_id of the model 1" in refused(tiny)


@pytest.mark.parametrize("kind", ["bos", "eos"])
def test_fault_35_a_special_id_that_the_tokenizer_lacks_is_refused(tiny: Tiny, kind: str) -> None:
    path = tiny.checkpoint / "tokenizer.json"
    data = json.loads(path.read_text())
    missing = {"bos": "<s>", "eos": "</s>"}[kind]
    del data["model"]["vocab"][missing]
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != missing]
    path.write_text(json.dumps(data))
    assert f"{kind}_token_id is {1 if kind == 'bos' else 2}, which the tokenizer does not have" in refused(tiny)


def test_fault_35_another_end_of_turn_is_a_warning_and_strict_an_error(tiny: Tiny) -> None:
    edit(tiny, "tokenizer_config.json", eos_token="<pad>")
    expected = "eos_token '<pad>' of the tokenizer is id 0, eos_token_id of the model 2"
    ran = tiny.quantize("--dry-run")
    assert ran.code == 0
    assert any(expected in note for note in ran.document["notes"])
    assert expected in ran.notes
    assert expected in refused(tiny, "--strict")


def another_tokenizer(path: Path) -> None:
    """Sound, of the same size, with two letters exchanged."""
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(data))
    Tokenizer.from_file(str(path))


COMMANDS = {
    "verify": ["verify", "OUT"],
    "run": ["run", "OUT", "--prompt", "Hello", "--backend", "simulator"],
    "eval": ["eval", "--model", "OUT", "--text", "TEXT"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", ["missing", "another"])
def test_fault_35_an_artifact_with_another_tokenizer_fails_verification(tiny: Tiny, command: str, fault: str) -> None:
    assert tiny.quantize().code == 0
    path = tiny.output / "tokenizer.json"
    path.unlink() if fault == "missing" else another_tokenizer(path)
    places = {"OUT": str(tiny.output), "TEXT": str(tiny.text)}
    ran = tiny.run(*(places.get(argument, argument) for argument in COMMANDS[command]))
    assert ran.code == 5
    assert "tokenizer.json" in json.dumps(ran.document)


def test_fault_35_a_reference_with_another_tokenizer_is_refused(tiny: Tiny) -> None:
    assert tiny.quantize().code == 0
    other = tiny.folder / "other"
    shutil.copytree(tiny.checkpoint, other)
    another_tokenizer(other / "tokenizer.json")
    ran = tiny.perplexity("--reference", str(other), text=TEXT[:200])
    assert ran.code == 3
    assert "splits the text into other tokens" in ran.message
