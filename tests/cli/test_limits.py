"""`quantize --budget-bytes` and `--max-ppl-increase`: refusals, forecast, a model of both widths on every runtime."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from commands import Command
from mobileicsa_export.executorch import MODEL_FILE
from mobileicsa_export.executorch_placement import delegate_graphs
from tiny_artifact import TEXT, write_checkpoint

from mobileicsa import api
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.artifact.verify import verify
from mobileicsa.core.errors import UsageError
from mobileicsa.core.plan import QuantPlan

# Of the tiny checkpoint: both widths of scheme w4a8, not rotated.
LEAST, MOST = 18_796, 26_476
BUDGET = 22_500
SMALL = ("calibration.samples=4", "calibration.length=32", "prefix_tokens=1", "alphas=[0.5]")


@pytest.fixture
def w4a8(quantize: list[str]) -> list[str]:
    """Arguments of a small `quantize` to 4 bits, all but --output."""
    return ["w4a8" if word == "w8a8" else word for word in quantize]


def dry(command: Command, arguments: list[str], *more: object) -> dict[str, Any]:
    document: dict[str, Any] = command(*arguments, "--output", "unused", "--dry-run", "--json", *more).json
    return document


@pytest.mark.parametrize("flag", [("--budget-bytes", 30_000), ("--max-ppl-increase", 0.1)], ids=lambda flag: flag[0])
def test_an_8_bit_scheme_has_nothing_to_promote(
    command: Command, quantize: list[str], tmp_path: Path, flag: tuple[str, float]
) -> None:
    result = command(*quantize, "--output", tmp_path / "out", *flag)
    assert result.code == 2
    assert f"error: {flag[0]}: scheme w8a8 has 8-bit weights already" in result.err
    assert "--scheme w4a8 or w4a16" in result.err


def test_a_budget_that_is_too_small_is_told_both_bounds(command: Command, w4a8: list[str], tmp_path: Path) -> None:
    result = command(*w4a8, "--output", tmp_path / "out", "--budget-bytes", LEAST - 1)
    assert result.code == 2
    assert str(LEAST) in result.err
    assert str(MOST) in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", [("--budget-bytes", -3), ("--max-ppl-increase", 0), ("--max-ppl-increase", "nan")])
def test_a_limit_that_means_nothing_is_refused(
    command: Command, w4a8: list[str], tmp_path: Path, flag: tuple[str, float]
) -> None:
    result = command(*w4a8, "--output", tmp_path / "out", *flag)
    assert result.code == 2
    assert f"error: {flag[0]}" in result.err


def test_a_dry_run_forecasts_the_packed_weights(command: Command, w4a8: list[str]) -> None:
    def size(*more: object) -> dict[str, int]:
        found: dict[str, int] = dry(command, w4a8, *more)["estimates"]["packed_weights_bytes"]
        return found

    assert size() == {"least": LEAST, "most": LEAST}
    assert size("--budget-bytes", BUDGET) == {"least": LEAST, "most": BUDGET}
    assert size("--max-ppl-increase", 0.1) == {"least": LEAST, "most": MOST}
    limited, plain = dry(command, w4a8, "--budget-bytes", BUDGET), dry(command, w4a8)
    assert limited["limits"] == {"budget_bytes": BUDGET, "max_ppl_increase": None, "wide_inputs": False}
    assert plain["limits"] is None
    assert [step for step in limited["steps"] if step not in plain["steps"]] == [
        "measure what 4 bits cost each linear, give 8 to those that gain most for a byte",
        "measure perplexity on held-out text that the model writes",
    ]
    shown = command(*w4a8, "--output", "unused", "--dry-run", "--budget-bytes", BUDGET).out
    assert "to 22.0 KiB, as the limits ask" in shown


def test_a_budget_without_effect_is_noted(command: Command, w4a8: list[str]) -> None:
    assert "is no limit" in dry(command, w4a8, "--budget-bytes", MOST)["notes"][0]
    assert dry(command, w4a8, "--budget-bytes", MOST - 1)["notes"] == []


def test_a_square_mix_before_the_head_counts(command: Command, w4a8: list[str]) -> None:
    """A rotated model with a tied head has one linear more, of 8 bits."""
    rotated = ["rotated" if word == "minmax" else word for word in w4a8]
    assert dry(command, rotated)["estimates"]["packed_weights_bytes"]["least"] == LEAST + 32 * 32 + 32 * 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of both widths for both runtimes; its report is what `api.quantize` gave."""
    folder = tmp_path_factory.mktemp("mixed")
    text = folder / "text.txt"
    text.write_text(TEXT)
    report = api.quantize(
        str(write_checkpoint(folder / "checkpoint")),
        "w4a8",
        folder / "artifact",
        recipe="prefix",
        calibration=text,
        # A prefix could make a random model better than it was.
        overrides=(*SMALL, "prefix_tokens=0"),
        budget_bytes=BUDGET,
        max_ppl_increase=0.0001,
    )
    assert report["mixed"]["packed_bytes"] <= BUDGET
    return folder / "artifact"


def plan_of(folder: Path) -> QuantPlan:
    return QuantPlan.from_json(json.loads((folder / "quant_plan.json").read_text()))


def test_its_bytes_are_within_the_budget_and_used(made: Path) -> None:
    model = QuantizedModel.from_pretrained(made)
    packed = 0
    for name, weight in model.plan.weights.items():
        codes = model.frozen.tensors[name]
        packed += codes.numel() * weight.bits // 8 + 4 * codes.shape[0]
    assert LEAST < packed <= BUDGET
    assert {weight.bits for name, weight in model.plan.weights.items() if "layers." in name} == {4, 8}


def test_its_integers_are_the_same_on_every_runtime(made: Path) -> None:
    found = verify(made)
    assert found["ok"], found["problems"]
    assert set(found["backends"]) >= {"onnx", "executorch"}
    for name, agreement in found["backends"].items():
        assert agreement["equal_share"] >= 0.99, name
        assert agreement["max_steps"] <= 1, name


def test_each_weight_is_written_with_its_own_bits(made: Path, tmp_path: Path) -> None:
    plan = plan_of(made)
    api.export(made, "generic-npu", tmp_path / "npu")  # ONNX files of host-cpu hold a byte for each weight
    model = ir.load(tmp_path / "npu" / "onnx" / "model.onnx")
    stored = {v.name: v.const_value for v in model.graph.initializers.values() if v.const_value is not None}
    encodings = json.loads((made / "onnx" / "encodings_1.0.0.json").read_text())
    widths = {row["name"]: row["bw"] for row in encodings["param_encodings"]}
    for name, weight in plan.weights.items():
        assert widths[name] == weight.bits, name
        if name.startswith("layers."):
            tensor = stored[name]
            assert tensor.dtype == (ir.DataType.INT4 if weight.bits == 4 else ir.DataType.INT8), name
            assert (np.abs(tensor.numpy().astype(int)).max() > 7) == (weight.bits == 8), name
    (graph,) = delegate_graphs(made / "executorch" / MODEL_FILE, "decode")
    values = [v["xvalue_union"].get("tensor_value", v["xvalue_union"]) for v in graph["xvalues"]]
    assert sum(v["datatype"] == "xnn_datatype_qcint4" for v in values) == 14 - len(plan.promoted)
    config = json.loads((made / "config.json").read_text())["quantization_config"]
    assert config["promoted_to_8_bits"] == plan.promoted != []


def test_the_report_states_what_was_expected_and_what_was_measured(made: Path, command: Command) -> None:
    mixed = json.loads((made / "report.json").read_text())["mixed"]
    measured = mixed["measured"]
    assert measured["increase"] == pytest.approx(measured["perplexity"] / measured["float_perplexity"] - 1)
    assert measured["standard_error"] > 0
    assert measured["met"] is False  # a ten-thousandth was asked for
    assert f"--budget-bytes {BUDGET}" in mixed["shortfall"]
    assert mixed["predicted_increase_least"] < mixed["predicted_increase"] < mixed["predicted_increase_most"]
    page = (made / "report.html").read_text()
    assert 'id="mixed"' in page
    assert "more than the limit" in page
    assert f"--budget-bytes {BUDGET} --max-ppl-increase 0.0001" in page
    assert f"{len(mixed['promoted'])} of 14 linears have 8-bit weights" in (made / "README.md").read_text()
    document = command("inspect", made, "--json").json
    assert document["census"]["packed_weights_bytes"] == mixed["packed_bytes"]
    layers = sum(len(found) for found in document["promoted"].values())
    assert layers == len(mixed["promoted"]) == len(plan_of(made).promoted)
    shown = command("inspect", made).out
    assert "8-bit linears" in shown
    assert f"{layers} of 14" in shown


@pytest.mark.usefixtures("quick")
def test_a_prediction_is_near_what_is_measured(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    for increase in (0.3, 0.1):
        report = api.quantize(
            str(checkpoint),
            "w4a8",
            tmp_path / f"{increase}",
            recipe="minmax",
            overrides=("calibration.samples=16", "calibration.length=80"),
            max_ppl_increase=increase,
        )
        mixed = report["mixed"]
        assert mixed["predicted_increase"] <= increase
        expected, measured = (
            math.log1p(value) for value in (mixed["predicted_increase"], mixed["measured"]["increase"])
        )
        assert 0.4 < expected / measured < 2.5


@pytest.mark.usefixtures("quick")
def test_equal_seeds_promote_the_same_and_a_resumed_run_measures_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "checkpoint"))
    options: dict[str, Any] = {"recipe": "minmax", "overrides": SMALL[:2], "budget_bytes": BUDGET}
    whole = api.quantize(checkpoint, "w4a8", tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr("mobileicsa.artifact.build.record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.quantize(checkpoint, "w4a8", tmp_path / "cut", **options)
    monkeypatch.setattr("mobileicsa.quantize.mixed.measure", interrupted)
    monkeypatch.setattr("mobileicsa.artifact.held_out.generate_windows", interrupted)
    resumed = api.quantize(checkpoint, "w4a8", tmp_path / "cut", resume=True, **options)
    assert resumed["mixed"] == whole["mixed"]
    assert plan_of(tmp_path / "cut").to_json() == plan_of(tmp_path / "whole").to_json()


def interrupted(*given: object) -> None:
    raise KeyboardInterrupt


def test_16_bit_inputs_are_written_for_a_target_that_takes_them(
    command: Command, quantize: list[str], tmp_path: Path
) -> None:
    """W8A8, whose weights have nothing left to gain, for generic-npu."""
    out = tmp_path / "out"
    limit = ("--target", "generic-npu", "--max-ppl-increase", 0.0001)
    steps = dry(command, quantize, *limit)["steps"]
    assert "give 16 bits to linears' inputs, as many as are needed then" in steps
    assert command(*quantize, "--output", out, *limit).code == 0
    found = verify(out)
    assert found["ok"], found["problems"]
    assert found["backends"]["onnx"]["exact"]["ok"]
    inputs = json.loads((out / "report.json").read_text())["mixed"]["inputs"]
    names = {row["edge"] for row in inputs}
    assert len(names) == 8
    stored = json.loads((out / "onnx" / "encodings_1.0.0.json").read_text())["activation_encodings"]
    assert {row["bw"] for row in stored if row["name"] in names} == {16}
    shown = command("inspect", out).out
    assert "int16 mlp.product" in shown
    assert "8 of 8 inputs of linears have 16 bits" in (out / "README.md").read_text()
    assert '<td><code>mlp.product</code></td><td class="left">16 bits</td>' in (out / "report.html").read_text()


def test_the_python_api_refuses_as_the_command_does(tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(UsageError, match="--max-ppl-increase: scheme w8a8"):
        api.quantize(checkpoint, "w8a8", tmp_path / "out", max_ppl_increase=0.1)
