"""A bias-free model whose biases were corrected takes the whole route: plan, report, every back end's integers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_artifact import make_artifact

from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.artifact.verify import verify
from mobileicsa.report.html import write_report


@pytest.mark.parametrize("target", ["host-cpu", "generic-npu"])
def test_its_integers_are_the_same_on_every_runtime(target: str, tmp_path: Path) -> None:
    fields = ("bias_correction=true", "headroom=1.1")
    artifact = make_artifact(tmp_path, scheme="w4a8", target=target, finish=write_report, fields=fields)
    found = verify(artifact)
    assert set(found["backends"]) >= {"host-cpu": {"onnx", "executorch"}, "generic-npu": {"onnx"}}[target]
    for name, agreement in found["backends"].items():
        assert agreement["equal_share"] >= 0.99, name
        assert agreement["max_steps"] <= 1, name
    spec = QuantizedModel.from_pretrained(artifact).plan.spec
    assert spec.qkv_bias
    assert spec.o_bias
    assert spec.mlp_bias
    assert [row["stage"] for row in json.loads((artifact / "report.json").read_text())["quality"]] == ["base", "bias"]
    assert "biases corrected" in (artifact / "report.html").read_text()
