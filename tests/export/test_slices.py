"""A slice of a frozen model computes what the whole model's layers compute, with the others left out."""

from __future__ import annotations

import pytest
import torch
from tiny_frozen import tiny_frozen
from torch import nn

from mobileicsa.core.errors import UsageError
from mobileicsa.core.spec import LayerSpec
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.slices import parse_layers, slice_layers

FOUR = (LayerSpec(), LayerSpec(sliding_window=4), LayerSpec(), LayerSpec(rope=None))


@pytest.mark.parametrize("layers", [range(2), range(1, 4), range(3, 4)])
@pytest.mark.parametrize("primitive", [False, True])
@torch.no_grad()
def test_a_slice_is_the_model_without_the_other_layers(layers: range, primitive: bool) -> None:
    frozen = tiny_frozen(layers=FOUR)
    whole = build_decoder(frozen, primitive=primitive)
    whole.layers = nn.ModuleList(whole.layers[i] for i in layers)
    sliced = build_decoder(slice_layers(frozen, layers), primitive=primitive)
    assert sliced.spec.layers == tuple(FOUR[i] for i in layers)
    whole.spec = sliced.spec
    ids = torch.tensor([[5, 9, 1, 70, 33, 2, 8]])
    for expected, found in zip(_tensors(whole(ids)), _tensors(sliced(ids)), strict=True):
        assert torch.equal(expected, found)


def _tensors(result: object) -> list[torch.Tensor]:
    logits, rows = result  # type: ignore[misc]
    return [logits, *(row for pair in rows for row in pair)]


def test_a_slice_holds_its_layers_prefix_and_no_prediction_of_it() -> None:
    frozen = tiny_frozen(layers=FOUR)
    for i in range(4):
        frozen.tensors[f"prefix.{i}.key"] = torch.full((1, 2, 2, 16), i, dtype=torch.int8)
        frozen.tensors[f"prefix.{i}.value"] = torch.full((1, 2, 2, 16), 10 + i, dtype=torch.int8)
    frozen.tensors["prefix.logits"] = torch.zeros(96)
    object.__setattr__(frozen.plan, "prefix_ids", (1, 7))
    sliced = slice_layers(frozen, range(2, 4))
    assert [(int(k[0, 0, 0, 0]), int(v[0, 0, 0, 0])) for k, v in sliced.prefix_cache()] == [(2, 12), (3, 13)]
    assert "prefix.logits" not in sliced.tensors


def test_all_layers_are_the_model_itself() -> None:
    frozen = tiny_frozen(layers=FOUR)
    assert slice_layers(frozen, parse_layers(":", 4)) is frozen


@pytest.mark.parametrize(
    ("text", "layers"), [("0:2", range(2)), (":3", range(3)), ("3:", range(3, 4)), (" 1:4 ", range(1, 4))]
)
def test_layers_are_counted_as_python_slices(text: str, layers: range) -> None:
    assert parse_layers(text, 4) == layers


@pytest.mark.parametrize("text", ["", "2", "2:2", "3:1", "0:5", "-1:2", "a:b", "0:2:1", "٣:4"])
def test_layers_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--layers"):
        parse_layers(text, 4)
