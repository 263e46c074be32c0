"""Exported early exits: back ends against the simulator, borders, the policy, the artifact of a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.core.scheme import find_scheme
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec
from mobileicsa.program.backend import StagedBackend, find_backend
from mobileicsa.program.early_exit import ExitTable, decide, exits_taken, softmax
from mobileicsa.program.exit_stages import (
    ExitProgram,
    SimulatorStages,
    edges_of,
    export_stages,
    quantize_exits,
    stage_name,
    weights_of,
)
from mobileicsa.program.targets import find_target

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'mobileicsa[executorch]'")

SPEC = ExitVitSpec(
    channels=1, height=8, width=8, patch=4, dim=16, blocks=3, heads=2, head_dim=8, classes=4, exits=(2, 3)
)
SAMPLES = 12


def make_model() -> ExitVit:
    torch.manual_seed(0)
    model = ExitVit(SPEC).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> ExitVit:
    return make_model()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["w8a8", "w4a8"])
def program(request: pytest.FixtureRequest, model: ExitVit, inputs: torch.Tensor) -> ExitProgram:
    return quantize_exits(model, inputs, find_scheme(request.param))


def border_calls(stage: torch.fx.GraphModule) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    """Arguments of the dequantises of inputs and of the quantises of outputs."""
    users = (u for n in stage.graph.nodes if n.op == "placeholder" for u in n.users if u.op == "call_function")
    read = {tuple(user.args[1:]) for user in users}
    (output,) = (n for n in stage.graph.nodes if n.op == "output")
    return read, {tuple(n.args[1:]) for n in output.args[0][1:]}


def test_a_border_has_one_encoding_on_both_sides(program: ExitProgram) -> None:
    written, read = border_calls(program.stages[0])[1], border_calls(program.stages[1])[0]
    assert written == read
    scales = {program.borders[name].scale[0] for name in ("stage_0.state", "history")}
    assert {arguments[0] for arguments in written} == scales


def test_only_integers_cross_a_border_and_the_history_stays_as_it_is(model: ExitVit, inputs: torch.Tensor) -> None:
    spec = ExitVitSpec(**{**vars(SPEC), "exits": (1, 2, 3)})
    torch.manual_seed(0)
    deeper = quantize_exits(ExitVit(spec).eval().requires_grad_(False), inputs[:2], find_scheme("w8a8"))
    first = deeper.run(0, (inputs[:1],))[1:]
    second = deeper.run(1, first)[1:]
    assert {value.dtype for value in (*first, *second)} == {torch.int16}
    assert torch.equal(second[1][:, :1], first[1])


def test_integers_come_near_the_float_logits(model: ExitVit, inputs: torch.Tensor) -> None:
    program = quantize_exits(model, inputs, find_scheme("w8a8"))
    wanted = torch.stack(model(inputs), dim=1)
    found = []
    for sample in inputs:
        first, *handed = program.run(0, (sample[None],))
        found.append(torch.cat([first, *program.run(1, tuple(handed))]))
    error = (torch.stack(found) - wanted).abs().mean()
    assert error < 0.1 * wanted.std()


def test_plan_names_every_weight_once(program: ExitProgram, model: ExitVit) -> None:
    encodings, integers = weights_of(program)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(encodings) == {f"{name}.weight" for name in linears} | {"embed.patch.weight"}
    for name, encoding in encodings.items():
        assert int(integers[name].abs().max()) <= encoding.qmax
    assert {"history", "stage_0.state"} < set(edges_of(program))


@pytest.mark.parametrize(("backend", "least"), [("onnx", 0.98), ("executorch", 0.95)])
def test_runtimes_agree_with_the_simulator(
    backend: str, least: float, model: ExitVit, inputs: torch.Tensor, tmp_path: Path
) -> None:
    """Equal share of all numbers over whole chains; what differs is one step of a rounding, seldom more."""
    program = quantize_exits(model, inputs, find_scheme("w4a8"))
    found = find_backend(backend)
    reason = found.unavailable()
    if reason is not None:
        pytest.skip(reason)
    assert isinstance(found, StagedBackend)
    names = [stage_name(exit) for exit in range(2)]
    programs = {name: each for name, each in export_stages(program, inputs[:1]).items() if name in names}
    found.write_stages(programs, find_target("host-cpu"), tmp_path)
    session, simulator = found.open_stages(tmp_path, names), SimulatorStages(program)
    equal = total = 0
    for sample in inputs:
        handed = wanted = [sample[None].numpy()]
        for name in names:
            handed, wanted = session.run(name, handed), simulator.run(name, wanted)
            for value, expected in zip(handed, wanted, strict=True):
                assert value.dtype == expected.dtype
                equal, total = equal + int((value == expected).sum()), total + expected.size
            assert [value.dtype for value in handed[1:]] == [np.int16] * len(handed[1:])
            np.testing.assert_allclose(handed[0], wanted[0], atol=0.05)
            handed, wanted = handed[1:], wanted[1:]
    session.close()
    assert equal / total >= least, f"{backend}: {equal / total:.4f} of the numbers are the simulator's"


class Scripted:
    """Stages with given logits that count their calls."""

    def __init__(self, logits: list[list[float]]) -> None:
        self.logits, self.calls = logits, []

    def run(self, name: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self.calls.append(name)
        return [np.array([self.logits[len(self.calls) - 1]], np.float32), np.zeros((1, 1), np.int8)]

    def close(self) -> None: ...


@pytest.mark.parametrize(("threshold", "exit"), [(0.0, 1), (0.6, 1), (0.8, 2), (0.99, 3)])
def test_policy_stops_where_the_threshold_says(threshold: float, exit: int) -> None:
    odds = [[0.7, 0.3], [0.1, 0.9], [0.5, 0.5]]
    stages = Scripted(np.log(odds).tolist())
    names = ["stage_0", "stage_1", "stage_2"]
    decision = decide(stages, names, np.zeros(1), np.array([threshold, threshold, 0.0]), (10, 20, 30))
    assert (decision.exit, decision.macs) == (exit, 10 * exit)
    assert stages.calls == names[:exit], "deeper stages must not run"
    assert decision.label == int(np.argmax(odds[exit - 1]))


def make_table(shift: float) -> ExitTable:
    before = np.random.default_rng(0).uniform(0.3, 0.9, (200, 3))
    return ExitTable(macs=(10, 20, 30), float_confidence=before, confidence=before - shift)


def test_refitted_thresholds_keep_the_exits_of_the_float_model() -> None:
    table = make_table(shift=0.1)
    wanted = exits_taken(table.float_confidence, np.array([0.7, 0.7, 0.0]))
    assert np.array_equal(exits_taken(table.confidence, table.refitted(0.7)), wanted)
    unfitted = exits_taken(table.confidence, np.array([0.7, 0.7, 0.0]))
    assert not np.array_equal(unfitted, wanted), "without refitting more samples go deep"


@pytest.mark.parametrize("budget", [10, 13.5, 22, 30])
def test_budget_keeps_the_mean_macs_and_uses_them(budget: float) -> None:
    table = make_table(shift=0.05)
    used = table.mean_macs(table.for_budget(budget))
    assert used <= budget
    assert used > min(budget, table.mean_macs(1.0)) - 0.2


def test_budget_below_the_first_exit_is_refused() -> None:
    with pytest.raises(UsageError, match="first exit"):
        make_table(shift=0.0).for_budget(9)


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([1000.0, 0.0])).tolist() == [1.0, 0.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: ExitVit, inputs: torch.Tensor) -> Path:
    """A model's folder as `methods run reefl` hands it over, with inputs beside it, labelled by the float model."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("exits") / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**SPEC.to_json(), "task": "toy"}))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path / "model.safetensors")
    rows = [{"exit": e, "blocks": 1 + e, "macs": 1000 * e, "parameters": 1, "accuracy": 0.5} for e in (1, 2)]
    (path / "exits.json").write_text(json.dumps({"exits": rows}))
    labels = model(inputs)[-1].argmax(-1).numpy()
    np.savez(path.parent / "inputs.npz", inputs=inputs.numpy(), labels=labels)
    return path


def test_folder_to_artifact_to_decisions(folder: Path, tmp_path: Path) -> None:
    from mobileicsa.api import quantize_exits as quantize
    from mobileicsa.artifact.exit_inputs import read_inputs
    from mobileicsa.artifact.exit_model import ExitModel
    from mobileicsa.artifact.manifest import read_manifest

    for name in find_target("host-cpu").backends:
        if (reason := find_backend(name).unavailable()) is not None:
            pytest.skip(reason)
    npz = folder.parent / "inputs.npz"
    report = quantize(folder, "w8a8", tmp_path / "out", calibration=npz)
    for name, written in report["targets"]["host-cpu"].items():
        assert written["agreement"]["equal_share"] > 0.95, name
    assert report["curves"]["float"][-1]["accuracy"] == 1.0
    assert (tmp_path / "out" / "exits.svg").is_file()
    assert "/tmp" not in (tmp_path / "out" / "onnx" / "stage_0.onnx").read_bytes().decode("latin-1")
    with pytest.raises(InputError, match="early-exit"):
        read_manifest(tmp_path / "out")
    # A process that wrote the program may have kernels that one that only runs it lacks.
    fresh = (
        "import sys; from mobileicsa.artifact.exit_model import ExitModel; "
        "ExitModel.from_pretrained(sys.argv[1], backend='executorch')"
    )
    subprocess.run([sys.executable, "-c", fresh, str(tmp_path / "out")], check=True)
    found = ExitModel.from_pretrained(tmp_path / "out", backend="onnx")
    given = read_inputs(npz, SPEC, 0).inputs
    assert found.run(given, threshold=0.0)["taken"] == [SAMPLES, 0]
    assert found.run(given)["taken"] == [0, SAMPLES]
    assert found.run(given, mac_budget=1500.0)["mean_macs"] <= 1500.0
    found.close()


def test_wrong_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    from mobileicsa.artifact.exit_inputs import read_inputs

    np.savez(tmp_path / "bad.npz", inputs=np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="expected float32"):
        read_inputs(tmp_path / "bad.npz", SPEC, 0)
    assert read_inputs(None, SPEC, 0).facts["note"]
