"""A method cut into shards: chained, they are the method, integer for integer."""

from __future__ import annotations

import pytest
import torch
from tiny_frozen import CHUNK, CONTEXT, VOCAB, target, tiny_frozen
from torch import Tensor

from mobileicsa.core.spec import LayerSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.methods import Method, method_lengths
from mobileicsa.program.shards import export_shard, shards

TARGET = target(nonlinear="primitive")
# Two windows, a layer without RoPE: each shard must pick its own tables and masks.
MIXED = (LayerSpec(), LayerSpec(sliding_window=4), LayerSpec(rope=None))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build_decoder(tiny_frozen("w8a8", layers=MIXED), primitive=True)


def inputs(decoder: Decoder, method: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    length = method_lengths(TARGET)[method]
    shape = (1, decoder.spec.num_kv_heads, CONTEXT, decoder.spec.head_dim)
    found = {"input_ids": torch.randint(0, VOCAB, (1, length), generator=generator), "position": torch.tensor([5])}
    for index in range(decoder.spec.num_layers):
        for part in ("key", "value"):
            found[f"past.{index}.{part}"] = torch.randint(-99, 99, shape, generator=generator).to(torch.int8)
    return found


@torch.no_grad()
@pytest.mark.parametrize("method", ["prefill", "decode"])
@pytest.mark.parametrize("layers", [1, 2])
def test_shards_chained_are_the_method(decoder: Decoder, method: str, layers: int) -> None:
    values = inputs(decoder, method)
    whole = Method(decoder, length=method_lengths(TARGET)[method], context=CONTEXT).eval()
    logits, *rows = whole(*values.values())
    for shard in shards(decoder, TARGET, method, layers=layers):
        made = shard.module(*(values[name] for name in shard.inputs))
        values.update(zip(shard.outputs, made if isinstance(made, tuple) else (made,), strict=True))
    assert torch.equal(decoder.head.logits.load(values["logits"]), logits)
    names = [f"present.{i}.{part}" for i in range(len(MIXED)) for part in ("key", "value")]
    assert all(torch.equal(values[name], row) for name, row in zip(names, rows, strict=True))


def test_an_exported_shard_tells_its_inputs_apart(decoder: Decoder) -> None:
    shard = next(s for s in shards(decoder, TARGET, "decode") if s.name == "layers-00-00")
    program = export_shard(shard)
    assert len(program.graph_signature.user_inputs) == len(shard.inputs) == len(set(shard.inputs))
    keys, values = (torch.full_like(shard.arguments[-1], n) for n in (3, -7))
    given = (*shard.arguments[:-2], keys, values)
    with torch.no_grad():
        hidden, expected = program.module(check_guards=False)(*given)[0], shard.module(*given)[0]
    assert torch.equal(hidden, expected)


def test_every_shard_speaks_in_integers(decoder: Decoder) -> None:
    for shard in shards(decoder, TARGET, "prefill"):
        assert not any(argument.is_floating_point() for argument in shard.arguments)
    assert method_lengths(TARGET)["prefill"] == CHUNK
