"""The float stages that a bench times, written for ExecuTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_exits import SPEC, missing

from mobileicsa.methods.reefl.models import seeded
from mobileicsa.models.early_exit_vit import ExitVit


def test_a_stage_of_many_blocks_has_no_concatenation_too_wide_for_the_delegate(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'mobileicsa[executorch]'")
    if (reason := missing("host-cpu")) is not None:
        pytest.skip(reason)
    from mobileicsa_export.executorch_stages import ExecutorchStages, write_stages

    from mobileicsa.program.exit_stages import export_float_stages

    with seeded(0):
        model = ExitVit(replace(SPEC, blocks=5, exits=(1, 5))).eval().requires_grad_(False)
        inputs = torch.randn(1, 1, 8, 8)
    write_stages(export_float_stages(model, inputs), tmp_path)
    stages = ExecutorchStages(tmp_path, ["stage_0", "stage_1"])
    first, state, history = stages.run("stage_0", [inputs.numpy()])
    (second, *_) = stages.run("stage_1", [state, history])
    for found, wanted in zip((first, second), model(inputs), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
