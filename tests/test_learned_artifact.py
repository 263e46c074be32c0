"""A learned, rotated model takes the whole route: build, report page, reload, generation, every back end's integers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_artifact import make_artifact

from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.artifact.verify import verify
from mobileicsa.report.html import write_report


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_artifact(tmp_path_factory.mktemp("learned"), scheme="w4a8", recipe="learned", finish=write_report)


def test_its_integers_are_the_same_on_every_runtime(artifact: Path) -> None:
    found = verify(artifact)
    assert set(found["backends"]) >= {"onnx", "executorch"}
    for name, agreement in found["backends"].items():
        assert agreement["equal_share"] >= 0.99, name
        assert agreement["max_steps"] <= 1, name


def test_its_plan_is_rotated_and_it_writes_text(artifact: Path) -> None:
    model = QuantizedModel.from_pretrained(artifact)
    assert model.plan.spec.head_mix
    assert len(model.generate("the dog", max_new_tokens=4).token_ids) == 4


def test_the_report_tells_what_was_learned(artifact: Path) -> None:
    report = json.loads((artifact / "report.json").read_text())
    assert [stage["scope"] for stage in report["learning"]] == ["block", "model"]
    assert [row["stage"] for row in report["quality"]] == ["base", "block", "model"]
    page = (artifact / "report.html").read_text()
    assert 'id="quality"' in page
    assert 'id="learning"' in page
    assert "block by block" in page
    assert "end to end" in page
