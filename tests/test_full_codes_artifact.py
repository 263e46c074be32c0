"""An artifact whose 4-bit weights have the code -8: every runtime's integers, and targets that do not take it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_artifact import make_artifact

from mobileicsa import api
from mobileicsa.artifact.model import read_frozen
from mobileicsa.artifact.verify import verify
from mobileicsa.core.errors import SchemeError
from mobileicsa.report.contents import contents


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_artifact(tmp_path_factory.mktemp("full"), scheme="w4a8", recipe="rotated", fields=["codes=full"])


def test_its_integers_are_the_same_on_every_runtime(full: Path) -> None:
    frozen = read_frozen(full)
    linears = [name for name, weight in frozen.plan.weights.items() if weight.bits == 4]
    assert {int(frozen.tensors[name].min()) for name in linears} == {-8}
    found = verify(full)
    assert found["ok"]
    for name in ("simulator", "onnx", "executorch"):
        assert found["backends"][name]["equal_share"] >= 0.99, name
        assert found["backends"][name]["max_steps"] <= 1, name
    assert found["backends"]["onnx"]["exact"]["equal_share"] == 1.0


def test_inspect_says_which_weights_have_the_code(full: Path, artifact: Path) -> None:
    found, plain = contents(full), contents(artifact)
    assert (found["narrow_weights"], plain["narrow_weights"]) == (False, True)
    assert {(w["bits"], w["narrow"]) for w in found["weights"].values()} == {(4, False), (8, True)}


def test_it_is_not_exported_for_a_target_without_the_code(full: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="--target generic-npu: takes 4-bit weights from -7 to 7"):
        api.export(full, "generic-npu", tmp_path / "npu")
    assert list(tmp_path.iterdir()) == []


def test_it_is_not_quantised_for_a_target_without_the_code(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match=r"--target generic-npu: .* w4a8 with codes: full has -8 too"):
        make_artifact(tmp_path, scheme="w4a8", target="generic-npu", fields=["codes=full"])
    assert not (tmp_path / "artifact").exists()
