"""Bias correction: by what the mean of a linear's output moved under quantisation, its bias moves back.

Nagel et al. 2019 (arXiv 1906.04721), section 4.2, with means measured on calibration windows: b' = b + E[y] - E[y'],
y of the float model, y' of the quantised one on the inputs that it has itself, the linears before corrected already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.inputs import InputMean, values
from mobileicsa.calibrate.stream import BATCH
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.spec import ModelSpec
from mobileicsa.quantize.feedback import GROUPS
from mobileicsa.quantize.output_means import mean_output
from mobileicsa.quantize.steps import StageStore
from mobileicsa.quantize.student import Student, settled
from mobileicsa.quantize.student_layers import StudentLinear


def biased_spec(spec: ModelSpec) -> ModelSpec:
    """The spec of the corrected model: every linear of its blocks has a bias."""
    return replace(spec, qkv_bias=True, o_bias=True, mlp_bias=True)


@torch.no_grad()
def correct_biases(
    plan: QuantPlan,
    tensors: Mapping[str, Tensor],
    means: Mapping[str, Tensor],
    windows: Tensor,
    offsets: Tensor,
    store: StageStore,
    run: str,
    tick: Callable[[], None],
) -> tuple[QuantPlan, dict[str, Tensor]]:
    """The plan and tensors of the corrected model. `tick` is called once a block.

    `means`: E[y] (out,) float64 by linear, in the quantised one's units; windows (N, T) follow the prefix (or hold BOS
    where there is none), `offsets` (N,) positions further on. Peak memory: the model with float32 weights beside its
    integers.
    """
    plan = replace(plan, spec=biased_spec(plan.spec))
    tensors = {f"{name}.bias": torch.zeros(mean.shape) for name, mean in means.items()} | dict(tensors)
    student = settled(plan, tensors)
    hidden = student.decoder.embed(windows)
    for index in range(plan.spec.num_layers):
        stage, key = f"bias-{index:03d}", f"{run}:bias:{index}"
        if not store.done(stage, key):
            store.save(stage, key, _correct_block(student, index, hidden, offsets, means), {})
        biases, _ = store.load(stage)
        for name, bias in biases.items():
            tensors[f"{name}.bias"] = bias
            student.decoder.get_submodule(name).bias = nn.Parameter(bias, requires_grad=False)
        hidden = _run(student, index, hidden, offsets)
        tick()
    return plan, tensors


def _correct_block(
    student: Student, index: int, hidden: Tensor, offsets: Tensor, means: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """New biases (out,) float32 by linear, in place too: a group's means are those behind the corrected ones before."""
    found: dict[str, Tensor] = {}
    for group in GROUPS:
        linears = {name: _linear(student, name) for name in (f"layers.{index}.{linear}" for linear in group)}
        inputs = InputMean(values)
        hook = next(iter(linears.values())).register_forward_pre_hook(inputs)
        _run(student, index, hidden, offsets)
        hook.remove()
        for name, linear in linears.items():
            codes, scale = linear.rounded()
            moved = means[name] - mean_output(codes * scale[:, None], linear.bias, inputs.mean)
            assert linear.bias is not None
            found[name] = (linear.bias.double() + moved).to(torch.float32)
            linear.bias = nn.Parameter(found[name], requires_grad=False)
    return found


def _linear(student: Student, name: str) -> StudentLinear:
    linear = student.decoder.get_submodule(name)
    assert isinstance(linear, StudentLinear)
    return linear


def _run(student: Student, index: int, hidden: Tensor, offsets: Tensor) -> Tensor:
    parts = zip(torch.split(hidden, BATCH), torch.split(offsets, BATCH), strict=True)
    return torch.cat([student.run_layer(index, *part) for part in parts])
