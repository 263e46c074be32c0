"""Vela and the VGF converter on a tiny model's shards."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_frozen import target, tiny_frozen

from mobileicsa.core.errors import EnvironmentFault, SchemeError, VerificationError
from mobileicsa.core.spec import LayerSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import cannot_run
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.targets import find_target

pytest.importorskip("tosa_serializer", reason="tosa-tools is not installed")

import mobileicsa_export.tosa_compilers as compilers
from mobileicsa_export.tosa_vela import SUFFIX, VELA_SAYS, EthosUBackend
from mobileicsa_export.tosa_vgf import VgfBackend

vela = pytest.mark.skipif(EthosUBackend().unavailable() is not None, reason="ethos-u-vela is not installed")
vgf = pytest.mark.skipif(VgfBackend().unavailable() is not None, reason="the VGF converter is not installed")
SHARDS = 6  # of both methods of one layer


def small(name: str) -> Target:
    return replace(target(nonlinear="primitive"), name=name, device=find_target(name).device)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build_decoder(tiny_frozen("w4a8", layers=(LayerSpec(),)), primitive=True)


@pytest.fixture(scope="module")
def compiled(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("vela")
    written = EthosUBackend().write(decoder, small("ethos-u85-256"), folder, {})
    assert sum(path.name.endswith(SUFFIX) for path in written.files) == SHARDS
    assert all(path.is_file() for path in written.files)
    return folder, written.facts


@vela
def test_every_operator_is_on_the_npu_and_estimates_are_called_so(compiled: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = compiled
    assert (facts["delegated_share"], facts["float_tensors"], facts["unsupported"]) == (1.0, 0, [])
    assert facts["estimates"]["vela_says"] == " ".join(VELA_SAYS)
    assert "internal compiler estimates" in facts["estimates"]["vela_says"]
    for method in ("prefill", "decode"):
        numbers = facts["estimates"][method]
        assert min(numbers[name] for name in ("cycles", "npu_cycles", "macs", "sram_peak_kib", "flash_kib")) > 0
        assert numbers["cpu_operators"] == {}
        assert numbers["npu_operators"]["Conv2D"] == 8
    found = EthosUBackend().placement(folder, small("ethos-u85-256"))
    assert (found["outside"], found["fallbacks"]) == (0, [])


@vela
def test_compiled_shards_are_not_compiled_again(
    decoder: Decoder, compiled: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, facts = compiled
    (folder / f"decode-head{SUFFIX}").write_bytes(b"damaged")
    ran: list[list[str]] = []
    real = compilers.run
    monkeypatch.setattr("mobileicsa_export.tosa_vela.run", lambda command: ran.append(command) or real(command))
    assert EthosUBackend().write(decoder, small("ethos-u85-256"), folder, {}).facts == facts
    assert [Path(command[3]).name for command in ran] == ["decode-head.tosa"]


@vela
def test_what_vela_refuses_is_named_and_not_counted(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: list[str]) -> str:
        raise compilers.Refused("no such operator")

    monkeypatch.setattr("mobileicsa_export.tosa_vela.run", refuse)
    facts = EthosUBackend().write(decoder, small("ethos-u85-256"), tmp_path, {}).facts
    assert facts["delegated_share"] == 0.0
    assert facts["unsupported"][0] == {"op": "prefill-entry.tosa", "reason": "no such operator"}
    assert len(EthosUBackend().placement(tmp_path, small("ethos-u85-256"))["fallbacks"]) == SHARDS // 2


@vela
def test_products_on_the_cpu_are_not_counted_as_integer(compiled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compiled[0], tmp_path / "copy"))
    path = compilers.record_path(folder, "decode-head.tosa", SUFFIX)
    record = json.loads(path.read_text())
    moved = record["npu"].pop("Conv2D")
    path.write_text(json.dumps({**record, "cpu": {"Conv2D": moved}}))
    assert EthosUBackend().placement(folder, small("ethos-u85-256"))["products"]["outside"] == moved


def test_a_damaged_record_names_its_field(tmp_path: Path) -> None:
    path = compilers.record_path(tmp_path, "decode-head.tosa", SUFFIX)
    for text, message in (("{}", "'shard'"), ('{"shard": "a", "source": "b", "setting": 1}', "malformed: setting")):
        path.write_text(text)
        with pytest.raises(VerificationError, match=message) as caught:
            compilers.read_compiled(tmp_path, "decode-head.tosa", SUFFIX)
        assert caught.value.hint == "export it again"


def test_a_target_without_a_device_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="names no accelerator-config"):
        EthosUBackend().write(decoder, target(nonlinear="primitive"), tmp_path, {})


@vgf
def test_every_shard_becomes_a_vgf(decoder: Decoder, tmp_path: Path) -> None:
    written = VgfBackend().write(decoder, small("vgf"), tmp_path, {})
    assert sum(path.suffix == ".vgf" for path in written.files) == SHARDS
    assert (written.facts["delegated_share"], written.facts["unsupported"]) == (1.0, [])


@pytest.mark.parametrize("back_end", [EthosUBackend(), VgfBackend()])
def test_what_only_compiles_says_so_when_opened(back_end: Any, decoder: Decoder, tmp_path: Path) -> None:
    assert cannot_run(back_end.name) == back_end.compiles_only
    with pytest.raises(EnvironmentFault, match=f"back end {back_end.name}: .* with target tosa"):
        back_end.open(tmp_path, decoder.spec, small("vgf"))


def test_a_failing_command_is_refused_with_what_it_said() -> None:
    with pytest.raises(compilers.Refused, match="the reason"):
        compilers.run(["/bin/sh", "-c", "echo the reason >&2; exit 3"])
    with pytest.raises(EnvironmentFault, match="cannot run"):
        compilers.run(["/nowhere/tool"])
