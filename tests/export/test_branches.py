"""Branches of one context in one pass predict what each predicts alone: the same integers in the simulator."""

from __future__ import annotations

import pytest
import torch
from tiny_frozen import float_decoder, target, tiny_frozen, tiny_spec
from torch import Tensor

from mobileicsa.core.spec import LayerSpec
from mobileicsa.models.branches import branch_logits
from mobileicsa.models.decoder import Decoder, LayerCache
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.simulator import SimulatorSession

WINDOWED = (LayerSpec(sliding_window=4), LayerSpec())
PREFIX, CONTEXT = [1, 17], [40, 41, 42, 7, 9]
BRANCHES = [[5, 6, 7], [8], [5, 6, 7, 60, 61, 62, 63], [9, 9]]


def rows_of(decoder: Decoder, ids: list[int]) -> list[LayerCache]:
    rows: list[LayerCache] = decoder(torch.tensor([ids]))[1]
    return rows


def alone(decoder: Decoder, branch: list[int], past: list[LayerCache] | None) -> Tensor:
    logits = decoder(torch.tensor([[*CONTEXT, *branch]]), past)[0][0].to(torch.float32)
    return logits[len(CONTEXT) - 1 : -1]


@pytest.mark.parametrize("nonlinear", ["fused", "primitive"])
@pytest.mark.parametrize("prefixed", [False, True])
@torch.no_grad()
def test_the_simulator_gives_the_logits_of_each_branch_alone(nonlinear: str, prefixed: bool) -> None:
    decoder = build_decoder(tiny_frozen(layers=WINDOWED), primitive=nonlinear == "primitive")
    session = SimulatorSession(decoder, target(nonlinear=nonlinear))
    past = rows_of(decoder, PREFIX) if prefixed else None
    found = session.branch_logits(CONTEXT, BRANCHES, past)
    assert all(torch.equal(rows, alone(decoder, branch, past)) for rows, branch in zip(found, BRANCHES, strict=True))


@torch.no_grad()
def test_the_float_model_gives_them_up_to_rounding() -> None:
    decoder = float_decoder(tiny_spec(layers=WINDOWED))
    past = rows_of(decoder, PREFIX)
    for rows, branch in zip(branch_logits(decoder, CONTEXT, BRANCHES, past), BRANCHES, strict=True):
        torch.testing.assert_close(rows, alone(decoder, branch, past), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_branch_does_not_see_its_neighbours() -> None:
    decoder = float_decoder(tiny_spec())
    first = branch_logits(decoder, CONTEXT, [[5, 6, 7], [8, 9, 10]], None)
    other = branch_logits(decoder, CONTEXT, [[5, 60, 7], [8, 9, 10]], None)
    assert torch.equal(first[1], other[1])
    assert not torch.equal(first[0], other[0])
