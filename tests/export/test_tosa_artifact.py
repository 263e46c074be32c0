"""An artifact that was never exported for TOSA, through the library: lowered, run on the reference model, compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobileicsa.artifact import lowered
from mobileicsa.artifact.verify import verify

pytest.importorskip("tosa_reference_model", reason="tosa-tools is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lowered.CACHE, str(tmp_path / "cache"))


def test_golden_calls_of_a_slice_agree(artifact: Path) -> None:
    found = verify(artifact, only=["tosa"], layers="0:1")
    row = found["backends"]["tosa"]
    assert found["ok"]
    assert row["equal_share"] > 0.98
    assert row["max_steps"] <= 1
    assert row["placement"]["float"] == row["placement"]["outside"] == 0


@pytest.mark.slow
def test_golden_calls_of_the_whole_of_other_schemes_agree(other_artifact: Path) -> None:
    row = verify(other_artifact, only=["tosa"])["backends"]["tosa"]
    assert row["ok"]
    assert row["equal_share"] > 0.95
    assert row["top1_agreement"] > 0.95
