"""`verify` tells rounding noise that piles up over layers from a wrong first layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobileicsa.artifact import verify
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.program.backend import find_backend
from mobileicsa.program.simulator import SimulatorSession
from mobileicsa.program.targets import find_target, target_of_backend


def verified(artifact: Path, monkeypatch: pytest.MonkeyPatch, layer: int, share: float) -> dict[str, Any]:
    """A slice on the simulator, some of whose keys of that layer are a step off."""
    run = SimulatorSession.run
    random = np.random.default_rng(3)

    def wrong(self: SimulatorSession, *given: Any) -> Any:
        logits, rows = run(self, *given)
        rows = [row.copy() for row in rows]
        for row in rows[2 * layer : 2 * layer + 2]:
            row[random.random(row.shape) < share] ^= 1
        return logits, rows

    golden = verify.record(QuantizedModel.from_pretrained(artifact))
    monkeypatch.setattr(SimulatorSession, "run", wrong)
    model = QuantizedModel.from_pretrained(artifact)
    return verify._compared(model, golden, [], 0.25)


def test_noise_behind_the_first_layer_is_borne_where_the_target_says_so(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = verified(artifact, monkeypatch, layer=1, share=0.6)
    assert row["first_layer"]["equal_share"] == 1.0
    assert row["equal_share"] < 0.75
    assert row["ok"]


def test_a_first_layer_that_differs_is_a_defect(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = verified(artifact, monkeypatch, layer=0, share=0.6)
    assert row["equal_share"] > 0.5
    assert not row["ok"]


def test_a_back_end_of_several_targets_says_which_is_meant() -> None:
    assert target_of_backend("qnn-htp").name == find_backend("qnn-htp").target == "qnn-htp-v75"
    assert target_of_backend("tosa") == find_target("tosa")
    assert target_of_backend("onnx").backends == ("onnx",)
