"""`verify` tells rounding noise that piles up over layers from a layer that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobileicsa.artifact import verify
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.program.backend import find_backend
from mobileicsa.program.simulator import SimulatorSession
from mobileicsa.program.targets import find_target, target_of_backend

Change = Callable[[np.ndarray], np.ndarray]


def a_step_off(share: float) -> Change:
    random = np.random.default_rng(3)
    return lambda row: np.where(random.random(row.shape) < share, row ^ 1, row)


def verified(artifact: Path, monkeypatch: pytest.MonkeyPatch, layer: int, change: Change) -> dict[str, Any]:
    """The artifact on the simulator, whose keys and values of that layer are changed."""
    run = SimulatorSession.run

    def wrong(self: SimulatorSession, *given: Any) -> Any:
        logits, rows = run(self, *given)
        rows = list(rows)
        rows[2 * layer : 2 * layer + 2] = map(change, rows[2 * layer : 2 * layer + 2])
        return logits, rows

    golden = verify.record(QuantizedModel.from_pretrained(artifact))
    monkeypatch.setattr(SimulatorSession, "run", wrong)
    model = QuantizedModel.from_pretrained(artifact)
    return verify._compared(model, golden, [], None)


def test_rounding_noise_behind_the_first_layer_is_borne(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = verified(artifact, monkeypatch, 1, a_step_off(0.9))
    assert row["first_layer"]["equal_share"] == 1.0
    assert row["equal_share"] < 0.6
    assert row["noisiest_layer"]["layer"] == 1
    assert 0 < row["noisiest_layer"]["noise_share"] < verify.MAX_ROWS_NOISE / 4
    assert row["ok"]


@pytest.mark.parametrize("change", [lambda row: row[..., ::-1].copy(), lambda row: np.zeros_like(row)])
def test_a_later_layer_that_computes_something_else_is_a_defect_and_named(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    row = verified(artifact, monkeypatch, 1, change)
    assert row["first_layer"]["equal_share"] == 1.0
    assert row["logits"]["different"] == 0
    assert not row["ok"]
    assert "noise in keys or values of layer 1" in row["reason"]


def test_a_first_layer_that_differs_is_a_defect(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = verified(artifact, monkeypatch, 0, a_step_off(0.6))
    assert row["equal_share"] > 0.5
    assert not row["ok"]


def test_a_back_end_of_several_targets_says_which_is_meant() -> None:
    assert target_of_backend("qnn-htp").name == find_backend("qnn-htp").target == "qnn-htp-v75"
    assert target_of_backend("tosa") == find_target("tosa")
    assert target_of_backend("onnx").backends == ("onnx",)
