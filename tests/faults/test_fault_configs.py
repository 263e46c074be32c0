"""Torture list, cases 7, 9 and 15: a config cannot run code, exhaust the parser or hide that weights are quantized."""

from __future__ import annotations

import logging
import sys
import tracemalloc
from pathlib import Path

import pytest
from build import (
    CONFIG,
    refusal,
    write_config,
    write_model,
)

from mobileicsa.io.checkpoint import open_checkpoint


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
