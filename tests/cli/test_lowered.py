"""What an artifact was not exported for is lowered on demand, once; slices are compared with their own simulator."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command

from mobileicsa.artifact import exported, lowered
from mobileicsa.core.errors import EnvironmentFault, SchemeError
from mobileicsa.core.scheme import find_scheme
from mobileicsa.core.target import Target
from mobileicsa.program.targets import check_scheme, check_size

INTERFACE = {"target", "delegated_share", "float_tensors", "unsupported", "estimates"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(lowered.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_slice_of_another_target_is_verified_against_its_own_simulator(
    command: Command, artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("verify", artifact, "--backend", "onnx", "--target", "generic-npu", "--layers", "1:2", "--json")
    result = command(*arguments)
    assert result.code == 0
    row = result.json["backends"]["onnx"]
    assert (row["target"], row["layers"], row["ok"]) == ("generic-npu", "1:2", True)
    assert row["equal_share"] >= 0.75
    # One layer's keys and values in each of 40 calls, not two.
    whole = command("verify", artifact, "--backend", "simulator", "--no-save", "--json").json["backends"]["simulator"]
    assert row["integers"] == whole["integers"] // 2
    entry = next(path for path in (cache / "lowered").iterdir() if path.is_dir())
    assert (entry / exported.TARGET_FILE).is_file()

    def again(*given: object, **named: object) -> None:
        raise AssertionError("lowered twice")

    monkeypatch.setattr(lowered, "export_artifact", again)
    monkeypatch.setattr(lowered, "OutputLock", again)  # nor is anything written where all is there
    assert command(*arguments).json["backends"]["onnx"] == row


def test_a_slice_is_not_kept_in_the_artifacts_report(command: Command, own_artifact: Path) -> None:
    before = (own_artifact / "report.json").read_bytes()
    assert command("verify", own_artifact, "--backend", "simulator", "--layers", "0:1", "--json").code == 0
    assert (own_artifact / "report.json").read_bytes() == before


def test_eval_on_a_target_that_was_not_exported_predicts_what_its_simulator_does(
    command: Command, artifact: Path, text: Path
) -> None:
    given = ("eval", "--model", artifact, "--text", text, "--window", 16, "--max-windows", 2, "--no-save", "--json")
    found = command(*given, "--backend", "onnx", "--target", "generic-npu")
    assert found.code == 0
    simulated = command(*given)
    assert found.json["perplexity"] == pytest.approx(simulated.json["perplexity"], rel=0.1)
    assert found.json["backend"] == "onnx"


def test_run_lowers_first_and_continues_as_the_same_programs_simulator_does(
    command: Command, artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("run", artifact, "--target", "generic-npu", "--prompt", "The quick", "--max-new-tokens", 4, "--json")
    found = command(*given, "--backend", "onnx")
    assert found.code == 0
    assert "write onnx for generic-npu" in found.err
    assert found.json["backend"] == "onnx"
    assert found.json["token_ids"] == command(*given).json["token_ids"]

    def again(*given: object, **named: object) -> None:
        raise AssertionError("lowered twice")

    monkeypatch.setattr(lowered, "export_artifact", again)
    assert command(*given, "--backend", "onnx").json["token_ids"] == found.json["token_ids"]


def test_run_on_an_emulator_says_how_slow_it_is(
    command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("run", artifact, "--backend", "onnx", "--prompt", "a", "--max-new-tokens", 1)
    assert "emulated" not in command(*given).err
    monkeypatch.setattr("mobileicsa_export.onnx.OnnxBackend.emulator", "a snail takes hours a token", raising=False)
    assert "onnx is emulated on this machine: a snail takes hours a token" in command(*given).err


def test_export_of_a_slice_tells_what_the_accelerator_takes(command: Command, artifact: Path, tmp_path: Path) -> None:
    arguments = ("export", artifact, "--target", "generic-npu", "--layers", "0:1", "--output", tmp_path / "out")
    document = command(*arguments, "--json").json
    assert document.keys() >= INTERFACE
    assert 0 < document["delegated_share"] <= 1
    assert document["float_tensors"] == 0
    fused = command("export", artifact, "--target", "openvino", "--output", tmp_path / "fused", "--json")
    if fused.code == 0:  # OpenVINO is installed
        assert fused.json["float_tensors"] > 0
    whole = command("export", artifact, "--target", "generic-npu", "--output", tmp_path / "whole", "--json").json
    sizes = [made["backends"]["onnx"]["files"]["model.onnx"]["bytes"] for made in (document, whole)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("verify", "--backend", "nosuch"), 3, "nosuch"),
        (("verify", "--backend", "onnx", "--layers", "1:5"), 2, "0:2"),
        (("verify", "--backend", "executorch", "--target", "generic-npu"), 3, "not by executorch"),
        (("export", "--target", "generic-npu", "--layers", "2", "--output", "out"), 2, "START:STOP"),
    ],
)
def test_what_is_not_there_is_named(
    command: Command, artifact: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    result = command(arguments[0], artifact, *arguments[1:], "--json")
    assert result.code == code
    assert word in result.json["error"]["message"] + str(result.json["error"]["hint"])


def strict(**fields: object) -> Target:
    return Target.from_mapping({"name": "strict", "description": "", "backends": ["onnx"], **fields}, "strict")


@pytest.mark.parametrize(
    ("scheme", "linears", "missing"),
    [
        ("w8a8", ("a8w8",), None),
        ("w4a8", ("a8w8", "a8w4"), None),
        ("w4a8", ("a8w8",), "a8w4"),
        ("w4a16", ("a8w8", "a8w4"), "a16w4"),
        ("w4a16", ("a16w8", "a16w4"), None),
        ("w4a16", (), None),
    ],
)
def test_fault_57_a_target_that_does_not_multiply_the_schemes_pairs_refuses_it(
    scheme: str, linears: tuple[str, ...], missing: str | None
) -> None:
    target = strict(linears=list(linears))
    if missing is None:
        check_scheme(find_scheme(scheme), target)
        return
    with pytest.raises(SchemeError, match=missing):
        check_scheme(find_scheme(scheme), target)


def test_fault_58_weights_above_the_devices_ceiling_are_refused_before_heavy_work() -> None:
    check_size(strict(max_bytes=100), 100)
    with pytest.raises(EnvironmentFault, match=r"at most 100 bytes.*101"):
        check_size(strict(max_bytes=100), 101)


@pytest.mark.parametrize("fields", [{"linears": ["w4a8"]}, {"linears": ["a4w4"]}, {"sram": 3}])
def test_a_malformed_target_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(Exception, match="strict"):
        strict(**fields)


def test_an_export_replaces_only_what_it_is_told_to(command: Command, artifact: Path, tmp_path: Path) -> None:
    arguments = ("export", artifact, "--target", "generic-npu", "--layers", "0:1", "--output", tmp_path / "out")
    assert command(*arguments).code == 0
    refused = command(*arguments)
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    assert command(*arguments, "--overwrite").code == 0


def test_an_interrupted_export_goes_on_where_its_back_end_can(
    command: Command, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobileicsa_export.tosa import TosaBackend

    if TosaBackend().unavailable():
        pytest.skip(str(TosaBackend().unavailable()))
    arguments = ("export", artifact, "--target", "tosa", "--output", tmp_path / "out")
    with monkeypatch.context() as patch:

        def interrupt(self: TosaBackend, folder: Path, target: Target) -> None:
            raise KeyboardInterrupt

        patch.setattr(TosaBackend, "placement", interrupt)
        stopped = command(*arguments)
    assert stopped.code == 130
    assert "the same command goes on from there" in stopped.err
    assert not (tmp_path / "out").exists()

    def again(*given: object) -> None:
        raise AssertionError("lowered twice")

    monkeypatch.setattr("mobileicsa_export.tosa_shards.lower", again)
    assert command(*arguments).code == 0
    assert (tmp_path / "out" / "tosa" / "shards.json").is_file()


def test_a_target_alone_means_its_back_ends(command: Command, artifact: Path) -> None:
    result = command("verify", artifact, "--target", "generic-npu", "--layers", "0:1", "--no-greedy", "--json")
    assert result.code == 0
    assert {name: row["target"] for name, row in result.json["backends"].items()} == {
        "simulator": "generic-npu",
        "onnx": "generic-npu",
    }


def test_a_slice_of_an_exported_back_end_is_for_the_artifacts_own_target(command: Command, artifact: Path) -> None:
    row = command("verify", artifact, "--backend", "onnx", "--layers", "0:1", "--json").json["backends"]["onnx"]
    assert row["target"] == "host-cpu"


def test_a_back_end_that_only_compiles_is_skipped_not_failed(
    command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **named: object) -> None:
        raise AssertionError("compiled for nothing")

    monkeypatch.setattr("mobileicsa_export.onnx.OnnxBackend.compiles_only", "compiles only", raising=False)
    monkeypatch.setattr("mobileicsa_export.onnx.OnnxBackend.write", never)
    result = command("verify", artifact, "--backend", "onnx", "--layers", "0:1", "--json")
    assert result.code == EnvironmentFault.exit_code
    assert result.json["backends"]["onnx"] == {"skipped": "compiles only"}
    # Of a target that the artifact has no files for, as of one of Arm's NPUs.
    ran = command("run", artifact, "--backend", "onnx", "--target", "generic-npu", "--prompt", "a", "--json")
    assert ran.code == EnvironmentFault.exit_code
    assert ran.json["error"]["message"] == "--backend onnx: compiles only"


def test_other_slices_and_other_manifests_have_entries_of_their_own(artifact: Path) -> None:
    one, same, other = (lowered.Lowered(artifact, "onnx", "generic-npu", text).files for text in ("0:1", ":1", "1:2"))
    assert one == same != other


@pytest.mark.parametrize("name", ["target.json", "export.json", "onnx/model.onnx.data", "onnx/model.onnx"])
def test_a_damaged_cache_entry_is_made_again(command: Command, artifact: Path, cache: Path, name: str) -> None:
    arguments = ("verify", artifact, "--backend", "onnx", "--target", "generic-npu", "--layers", "0:1", "--json")
    good = command(*arguments).json["backends"]["onnx"]
    (path,) = (cache / "lowered").glob(f"*/{name}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data[:-2])
    if name == "target.json":
        path.unlink()
    result = command(*arguments)
    assert result.json["backends"]["onnx"] == good
    assert "it is made again" in result.err


def test_a_cache_that_cannot_be_written_is_named(
    command: Command, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(lowered.CACHE, str(tmp_path / "file"))
    result = command("verify", artifact, "--backend", "onnx", "--layers", "0:1", "--json")
    assert result.code == EnvironmentFault.exit_code
    assert lowered.CACHE in result.json["error"]["hint"]


def test_logits_of_another_scale_are_not_verified(
    command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobileicsa_export.onnx_session import OnnxSession

    run = OnnxSession.run
    monkeypatch.setattr(
        OnnxSession, "run", lambda self, *given: (lambda logits, rows: (3 * logits, rows))(*run(self, *given))
    )
    row = command("verify", artifact, "--backend", "onnx", "--layers", "0:1", "--json").json["backends"]["onnx"]
    assert row["equal_share"] > 0.75
    assert row["top1_agreement"] == 1.0
    assert not row["ok"]
    assert "noise in the logits" in row["reason"]
