"""Integers of the reference model beside the simulator's: each shard on the same inputs, and the whole chained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mobileicsa_export.tosa_session import TosaSession, run_shard
from numpy.typing import NDArray

from mobileicsa.artifact.lowered import Lowered
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.shards import Shard, shards
from mobileicsa.program.simulator import prepare_for_eager

Integers = Mapping[str, NDArray[Any]]


def compare(lowered: Lowered, session: TosaSession, method: str, inputs: Integers) -> list[dict[str, Any]]:
    """A row a shard: `alone` on the simulator's inputs, `chained` behind the shards before it.

    `inputs`: input_ids, position and every layer's cache. A row counts equal integers and the largest difference in
    steps, of `hidden` (16 bits), of new keys and values (8 bits) and of logits (16 bits).
    """
    decoder = build_decoder(lowered.frozen, primitive=True)
    prepare_for_eager(decoder)
    expected, chained = dict(inputs), dict(inputs)
    rows = []
    simulated = shards(decoder, lowered.target, method)
    for shard, loaded in zip(simulated, session.shards(method), strict=True):
        alone = run_shard(loaded, expected)
        chained.update(run_shard(loaded, chained))
        expected.update(_simulate(shard, expected))
        rows.append(
            {
                "shard": shard.name,
                "alone": {name: _steps(alone[name], expected[name]) for name in shard.outputs},
                "chained": {name: _steps(chained[name], expected[name]) for name in shard.outputs},
            }
        )
    return rows


@torch.no_grad()
def _simulate(shard: Shard, values: Integers) -> dict[str, NDArray[Any]]:
    given = [
        torch.from_numpy(np.array(values[name])).to(argument.dtype)
        for name, argument in zip(shard.inputs, shard.arguments, strict=True)
    ]
    made = shard.module(*given)
    outputs = made if isinstance(made, tuple) else (made,)
    return {name: tensor.numpy() for name, tensor in zip(shard.outputs, outputs, strict=True)}


def _steps(found: NDArray[Any], expected: NDArray[Any]) -> dict[str, Any]:
    distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    return {"equal_share": float((distance == 0).mean()), "max_steps": int(distance.max())}
