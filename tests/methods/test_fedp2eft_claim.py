"""FedP2EFT's claim on SmolLM2 and real text: some ten minutes of one core."""

from __future__ import annotations

from pathlib import Path

import pytest
from schema import read_result

from mobileicsa.api import run_method
from mobileicsa.io.checkpoint import Checkpoint
from mobileicsa.methods.fedp2eft.strategies import BASELINES
from mobileicsa.methods.peft_vector import PeftVector

METRIC = "loss_rank_2"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fedp2eft_claim(smollm2: Checkpoint, data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    run_method("fedp2eft", "small", tmp_path / "out", overrides=[f"data={data_dir}"])
    check_claim(tmp_path / "out", smollm2.identity)


def check_claim(folder: Path, base_identity: str) -> None:
    """Every variant must personalise; whether ours does so best is the verdict's to say, by the paired intervals."""
    document = read_result(folder)
    base = document["metrics"]["untuned_loss"]["mean"]
    losses = {name: metrics[METRIC] for name, metrics in document["baselines"].items()} | {
        "fedp2eft": document["metrics"][METRIC]
    }
    assert all(loss["mean"] < base - 0.3 for loss in losses.values())
    ahead = [
        sum(a < b for a, b in zip(losses["fedp2eft"]["per_seed"], losses[name]["per_seed"], strict=True))
        for name in BASELINES
    ]
    if document["verdict"]["holds"]:
        assert all(wins == 3 for wins in ahead)
    else:
        assert "not shown" in document["verdict"]["why"]
    adapter = PeftVector.load(folder / document["artifacts"]["adapter"])
    assert adapter.base_identity == base_identity
    assert len(set(adapter.ranks.values())) > 1
    assert document["metrics"]["rejected_updates"]["mean"] == 0.0
