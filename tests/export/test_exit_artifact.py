"""The artifact of a tiny early-exit model: written once, then run, verified, inspected, measured, exported."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_exits import MACS, SAMPLES, SPEC, missing, write_folder

from mobileicsa.artifact import layout
from mobileicsa.artifact.exit_inputs import read_inputs
from mobileicsa.artifact.exit_model import ExitModel
from mobileicsa.artifact.exit_verify import verify_exits
from mobileicsa.artifact.manifest import EARLY_EXIT, check_files, read_manifest
from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.report.record import record

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'mobileicsa[executorch]'")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The artifact and its report; inputs.npz lies beside the folder."""
    from mobileicsa.api import quantize_exits

    if (reason := missing("host-cpu")) is not None:
        pytest.skip(reason)
    folder = write_folder(tmp_path_factory.mktemp("exits") / "model")
    out = folder.parent / "out"
    return out, quantize_exits(folder, "w4a8", out, calibration=folder.parent / "inputs.npz")


@pytest.fixture(scope="module")
def artifact(made: tuple[Path, dict[str, Any]]) -> Path:
    return made[0]


@pytest.fixture
def own(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "own"))


def test_runtimes_agree_with_the_simulator(made: tuple[Path, dict[str, Any]]) -> None:
    """Equal share of all numbers over whole chains; what differs is one step of a rounding, seldom more."""
    least = {"onnx": 0.98, "executorch": 0.95}
    written = made[1]["targets"]["host-cpu"]
    assert set(written) == set(least)
    for name, row in written.items():
        agreement = row["agreement"]
        assert agreement["equal_share"] >= least[name], name
        assert agreement["largest_logit_difference"] <= 0.05
        assert min(stage["equal_share"] for stage in agreement["stages"]) >= least[name], name


def test_report_has_curves_and_figures(made: tuple[Path, dict[str, Any]]) -> None:
    artifact, report = made
    assert report["curves"]["float"][-1]["accuracy"] == 1.0
    assert (artifact / layout.EXIT_FIGURE).is_file()
    page = (artifact / layout.REPORT_PAGE).read_text()
    assert "executorch for host-cpu" in page
    assert page.count("<svg") == 1


def test_nothing_of_this_machine_is_written(artifact: Path) -> None:
    assert "/tmp" not in (artifact / "onnx" / "stage_0.onnx").read_bytes().decode("latin-1")


def test_it_is_no_decoder(artifact: Path) -> None:
    with pytest.raises(InputError, match="early-exit") as caught:
        read_manifest(artifact)
    assert "--input" in str(caught.value.hint)


def test_a_process_that_only_runs_it_has_the_kernels(artifact: Path) -> None:
    fresh = (
        "import sys; from mobileicsa.artifact.exit_model import ExitModel; "
        "ExitModel.from_pretrained(sys.argv[1], backend='executorch')"
    )
    subprocess.run([sys.executable, "-c", fresh, str(artifact)], check=True)


def test_decisions_follow_the_policy_and_are_timed(artifact: Path) -> None:
    found = ExitModel.from_pretrained(artifact, backend="onnx")
    given = read_inputs(artifact.parent / "inputs.npz", SPEC, 0).inputs
    first = found.run(given, threshold=0.0)
    assert first["taken"] == [SAMPLES, 0]
    assert len(first["latency"]["stages_ms"]) == 1, "a stage that never ran has no latency"
    every = found.run(given)
    assert every["taken"] == [0, SAMPLES]
    stages, exits = (every["latency"][name] for name in ("stages_ms", "exits_ms"))
    assert exits == [stages[0], sum(stages)]
    assert every["latency"]["mean_ms"] > 0
    assert found.run(given, mac_budget=1500.0)["mean_macs"] <= 1500.0
    found.close()


def test_verify_replays_every_stage_on_each_back_end(artifact: Path) -> None:
    found = verify_exits(artifact)
    assert found["ok"], found
    assert list(found["backends"]) == ["simulator", "onnx", "executorch"]
    assert found["backends"]["simulator"]["equal_share"] == 1.0
    assert all(len(row["stages"]) == 2 for row in found["backends"].values())


def test_verify_finds_a_stage_with_other_integers(own: Path) -> None:
    """Files that are whole and still compute something else: stage 1 in the place of another scheme's."""
    path = own / layout.PLAN
    plan = json.loads(path.read_text())
    edge = next(name for name in plan["edges"] if name.startswith("stage_1/linear"))
    plan["edges"][edge]["scale"] = [plan["edges"][edge]["scale"][0] * 64]
    path.write_text(json.dumps(plan))
    from mobileicsa.artifact.manifest import write_manifest

    kept = ("kind", "mobileicsa_version", "scheme", "model_identity", "run", "default_target", "targets")
    manifest = json.loads((own / layout.MANIFEST).read_text())
    write_manifest(own, {name: manifest[name] for name in kept})
    row = verify_exits(own, only=["simulator"])["backends"]["simulator"]
    assert not row["ok"]
    assert "stage 1" in row["reason"]
    assert row["stages"][0]["equal_share"] == 1.0


def test_verify_names_a_damaged_file(own: Path) -> None:
    (own / "onnx" / "stage_1.onnx").write_bytes(b"")
    found = verify_exits(own)
    assert not found["ok"]
    assert "stage_1.onnx" in found["problems"][0]
    assert found["backends"] == {}


def test_inspect_counts_what_is_inside(artifact: Path) -> None:
    from mobileicsa.report.exit_contents import exit_contents

    found = exit_contents(artifact, edges="^stage_0/")
    assert [stage["blocks"] for stage in found["stages"]] == [[1, 1], [2, 2]]
    assert [exit["macs"] for exit in found["exits"]] == list(MACS)
    assert set(found["census"]["weights"]) == {"int4"}
    assert found["census"]["packed_weights_bytes"] == found["census"]["weight_values"] // 2
    assert found["edges"]
    assert all(name.startswith("stage_0/") for name in found["edges"])
    assert len(found["inner_edges"]) > len(found["edges"])
    operators = found["targets"]["host-cpu"]["onnx"]["operators"]
    assert {"stage_0", "stage_1", "all_exits"} == set(operators)


def bench_row(*exits_ms: float) -> dict[str, Any]:
    return {"exits_ms": list(exits_ms), "stages_ms": list(np.diff([0.0, *exits_ms])), "load_ms": 1.0, "file_bytes": 9}


def test_a_curve_has_the_milliseconds_of_the_exits_taken(artifact: Path) -> None:
    from mobileicsa.bench.exits import curves
    from mobileicsa.report.record import read_report

    report = read_report(artifact)
    found = curves(report, {"onnx": {**bench_row(1.0, 3.0), "float32": bench_row(2.0, 6.0)}, "x": {"skipped": "no"}})
    assert found is not None
    assert set(found) == {"onnx"}
    assert found["onnx"]["integer"][0]["mean_ms"] == 1.0, "threshold 0: all take the first exit"
    assert found["onnx"]["integer"][-1]["mean_ms"] == 3.0
    assert found["onnx"]["float32"][-1]["mean_ms"] == 6.0
    assert curves({}, {}) is None


def test_a_measured_latency_is_drawn_and_leaves_the_files_whole(own: Path) -> None:
    from mobileicsa.bench.environment import environment
    from mobileicsa.bench.exits import curves
    from mobileicsa.report.record import read_report

    rows = {"onnx": {**bench_row(1.0, 3.0), "float32": bench_row(2.0, 6.0)}}
    facts = {"repeat": 1, "inputs": 8, "environment": environment()}
    record(own, "bench", {**facts, "backends": rows, "curves": curves(read_report(own), rows)})
    drawn = (own / layout.LATENCY_FIGURE).read_text()
    assert all(words in drawn for words in ("ONNX Runtime", "integer", "float32", "millions", "%"))
    assert (own / layout.REPORT_PAGE).read_text().count("<svg") == 2
    assert check_files(own, read_manifest(own, EARLY_EXIT)) == []


@pytest.mark.slow
def test_bench_times_every_stage_float_and_integer(own: Path) -> None:
    from mobileicsa.bench.exits import bench_exits

    found = bench_exits(own, baseline_float=True, repeat=1)
    for row in found["backends"].values():
        assert len(row["exits_ms"]) == len(row["float32"]["exits_ms"]) == len(row["speed_up"]) == 2
        assert 0 < row["exits_ms"][0] < row["exits_ms"][1]
    assert set(found["curves"]["onnx"]) == {"integer", "float32"}


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", inputs=np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="expected float32"):
        read_inputs(tmp_path / "bad.npz", SPEC, 0)
    assert read_inputs(None, SPEC, 0).facts["note"]


def test_tosa_has_the_stages_in_integers_alone(artifact: Path, tmp_path: Path) -> None:
    """Counted from the flatbuffers, and run on the reference model against the simulator of the same program."""
    from mobileicsa.api import export_exits

    if (reason := missing("tosa")) is not None:
        pytest.skip(reason)
    row = export_exits(artifact, "tosa", tmp_path / "tosa")["backends"]["tosa"]
    assert row["facts"]["float_tensors"] == 0
    for dtypes in row["facts"]["dtypes"].values():
        assert set(dtypes) <= {"INT4", "INT8", "INT16", "INT32"}
        assert dtypes["INT4"], "4-bit weights are kept in 4 bits"
    agreement = row["agreement"]
    assert agreement["equal_share"] > 0.98
    assert agreement["max_steps"] <= 4
    assert agreement["same_labels"] == 1.0
    assert min(stage["equal_share"] for stage in agreement["stages"]) > 0.98


@pytest.mark.parametrize(
    ("target", "backend", "suffix"), [("ethos-u85-256", "ethos-u", "_vela.npz"), ("vgf", "vgf", ".vgf")]
)
def test_stages_are_compiled_whole_and_say_that_nothing_runs_them(
    artifact: Path, tmp_path: Path, target: str, backend: str, suffix: str
) -> None:
    from mobileicsa.api import export_exits
    from mobileicsa.cli.exits_show import exported
    from mobileicsa.program.backend import find_backend

    if (reason := missing(target)) is not None:
        pytest.skip(reason)
    made = export_exits(artifact, target, tmp_path / "out")
    row = made["backends"][backend]
    assert row["agreement"] is None
    assert (row["facts"]["delegated_share"], row["facts"]["float_tensors"], row["facts"]["unsupported"]) == (1.0, 0, [])
    assert {f"{name}{suffix}" for name in ("stage_0", "stage_1", "all_exits")} <= set(row["files"])
    with pytest.raises(EnvironmentFault, match="with target tosa"):
        find_backend(backend).open_stages(tmp_path / "out" / backend, ["stage_0"])
    console = Console(width=200, record=True, file=io.StringIO())
    exported(console, {**made, "output": "out"})
    assert backend in console.export_text()
    verified = verify_exits(artifact, only=[backend], target=target)["backends"][backend]
    assert "with target tosa" in verified["skipped"]


def test_the_page_has_dashes_where_a_back_end_compiles_only(artifact: Path) -> None:
    from mobileicsa.report.exit_page import render_exits
    from mobileicsa.report.record import read_report

    report = read_report(artifact)
    report["targets"]["host-cpu"]["onnx"]["agreement"] = None
    page = render_exits(report)
    assert page.count("<td>onnx for host-cpu</td><td>-</td><td>-</td><td>-</td>") == 1
