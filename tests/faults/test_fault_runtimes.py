"""Torture list, cases 26 and 27 on real runtimes: multipliers of every size, ties, edges of the range, odd rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from one_linear import INT8, NUMERICS, OneLinear, by_executorch, by_onnx, encoding, simulated
from torch import Tensor

from mobileicsa.core.plan import WeightEncoding

X_SCALE, X_ZERO = 2.0**-4, -7
KINDS = {"w8": INT8, "w4": WeightEncoding(bits=4), "w4_with_-8": WeightEncoding(bits=4, narrow=False)}
MULTIPLIERS = [2.0**-40, 2.0**-23, 0.0117, 0.5, 1.0, 255.0, 256.0, 2.0**12, 2.0**40]


def with_multiplier(
    multiplier: float, inputs: int, kind: WeightEncoding = INT8, bias: Tensor | None = None
) -> OneLinear:
    """Scale of a sum over scale of the output."""
    y_scale = 2.0**-3
    scales = torch.full((5,), multiplier * y_scale / X_SCALE)
    return OneLinear(encoding(X_SCALE, X_ZERO), encoding(y_scale, 11), scales, inputs, kind, bias)


def half_steps(inputs: int) -> Tensor:
    """Every half step of x from below the smallest integer to above the largest: each other one is a tie."""
    values = (torch.arange(-2 * 140, 2 * 140 + 1) / 2 - X_ZERO) * X_SCALE
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(3))]
    rows = -(-len(values) // inputs)
    return torch.cat((values, torch.zeros(rows * inputs - len(values)))).reshape(rows, inputs)


def assert_alike(models: dict[str, OneLinear], x: Tensor, folder: Path) -> None:
    expected = {name: simulated(model, x) for name, model in models.items()}
    runs = {"ExecuTorch": by_executorch(models, x, folder), **by_onnx(models, x, folder)}
    assert set(runs) == {"ExecuTorch", *NUMERICS}
    for runtime, outputs in runs.items():
        for name, got in outputs.items():
            np.testing.assert_array_equal(got, expected[name], err_msg=f"{runtime}, {name}")


def test_fault_26_multipliers_of_every_size_give_the_simulators_integers(tmp_path: Path) -> None:
    """XNNPACK refuses to load a static linear whose multiplier is above 256."""
    models = {f"m{i}": with_multiplier(multiplier, 32) for i, multiplier in enumerate(MULTIPLIERS)}
    assert_alike(models, half_steps(32), tmp_path)


def test_fault_26_a_range_found_at_run_time_is_the_static_one_for_every_scale_and_zero_point(tmp_path: Path) -> None:
    """XNNPACK has no static linear with 16-bit output: two columns with the ends of the range pin a dynamic one."""
    step, scales = 2.0**-9, 1.3 * 2.0 ** -torch.arange(8, 13)
    models = {
        f"m{mantissa}_z{zero + 128}": OneLinear(encoding(mantissa * 2.0**-12, zero), encoding(step, 17, 16), scales, 48)
        for mantissa in (64, 73, 95, 112, 126, 127)
        for zero in (-128, -3, 127)
    }
    x = 2 * torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    equal = []
    for name, got in by_executorch(models, x, tmp_path).items():
        steps = np.abs(got - simulated(models[name], x)) / step
        # One step of 65 536 where float32 rounds a product the other way; a wrong grid is wrong everywhere.
        assert steps.max() <= 1
        equal.append((steps == 0).mean())
    assert np.mean(equal) > 0.998


def test_fault_26_a_bias_beyond_int32_gives_the_simulators_integers(tmp_path: Path) -> None:
    bias = torch.tensor([4.0, -4.0, 0.1, 0.0, 3e4])
    assert_alike({"tiny_scales": with_multiplier(2.0**-34, 32, bias=bias)}, half_steps(32), tmp_path)


@pytest.mark.parametrize("inputs", [3, 33, 64])
def test_fault_27_ties_edges_and_odd_rows_give_the_simulators_integers(inputs: int, tmp_path: Path) -> None:
    """XNNPACK's 4-bit rows of odd length came out shifted by half a byte."""
    models = {
        f"{kind}_{name}": with_multiplier(multiplier, inputs, encoding)
        for kind, encoding in KINDS.items()
        for name, multiplier in (("half", 0.5), ("small", 3 * 2.0**-9))
    }
    x = half_steps(inputs)
    assert_alike(models, x, tmp_path)
    sums = simulated(models["w8_half"], x)
    assert {-128, 127} <= set(sums.flatten().tolist())


def test_fault_27_the_simulator_rounds_ties_to_even_and_saturates() -> None:
    model = with_multiplier(1.0, 1)
    steps = torch.tensor([-140.5, -128.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 300.0])
    q = model.x.store(((steps - X_ZERO) * X_SCALE)[:, None])
    # The tie is one of x / scale, before the zero point -7 is added: half steps from it round to even there.
    assert (q[:, 0].int() - X_ZERO).tolist() == [min(max(round(s - X_ZERO), -121), 134) for s in steps.tolist()]
