"""Several continuations of one context in one pass: each sees the context and itself, at the positions it has alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mobileicsa.models.decoder import MASKED, Decoder, LayerCache, causal_mask, rope_table


def branch_logits(
    decoder: Decoder, context: Sequence[int], branches: Sequence[Sequence[int]], past: list[LayerCache] | None
) -> list[Tensor]:
    """For each branch, logits (len(branch), vocab) that predict its tokens behind `past` and `context`.

    `context` has at least one token, every branch too; `past` (its rows all valid) stands before the context. A
    branch's last token is predicted, not read. The head runs on the predicting rows only.
    """
    spec = decoder.spec
    start = 0 if past is None else past[0][0].shape[2]
    end = start + len(context)
    ids, positions, owners = list(context), list(range(start, end)), [0] * len(context)
    rows: list[int] = []
    for owner, branch in enumerate(branches, 1):
        read = branch[:-1]
        rows += [len(context) - 1, *range(len(ids), len(ids) + len(read))]
        ids += read
        positions += range(end, end + len(read))
        owners += [owner] * len(read)
    query, key = torch.tensor(positions), torch.tensor([*range(start), *positions])
    key_owner = torch.tensor([0] * start + owners)
    seen = (key_owner == 0) | (key_owner == torch.tensor(owners)[:, None])
    masks = {
        window: decoder.mask(torch.where(seen, causal_mask(query, key, window), MASKED))
        for window in {layer.sliding_window for layer in spec.layers}
    }
    tables = [rope_table(rope, query) for rope in spec.ropes]
    ropes = [(edge(cos), edge(sin)) for edge, (cos, sin) in zip(decoder.rope_edges(), tables, strict=True)]
    x, _ = decoder.hidden(torch.tensor([ids]), ropes, masks, past)
    logits: Tensor = decoder.head(x[:, rows])[0]
    return list(torch.split(logits, [len(branch) for branch in branches]))
