"""Data-free calibration: text that the model itself writes (LLM-QAT, arXiv 2305.17888), seeded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder, LayerCache

# Texts written side by side: more of them make caches that are slow to grow (new pages for every token), fewer read the
# weights too often.
GROUP = 64
# A GPU waits for its kernels to be sent, however many texts they write (20 ms a token on an H100); but their caches
# must fit a small one's memory. Not what is free there: the group decides what is drawn.
GPU_GROUP, GPU_CACHE_BYTES = 256, 4 << 30


def group_size(spec: ModelSpec, length: int, device: torch.device) -> int:
    if device.type == "cpu":
        return GROUP
    text = sum(keys.nbytes + values.nbytes for keys, values in _room(spec, 1, length, torch.device("meta")))
    return max(1, min(GPU_GROUP, GPU_CACHE_BYTES // text))


def passes(samples: int, length: int, spec: ModelSpec, device: torch.device) -> int:
    """How often `generate_windows` calls its `tick`, at most, for a decoder of `spec` on `device`."""
    return -(-samples // group_size(spec, length, device)) * length


def generate_windows(decoder: Decoder, samples: int, length: int, seed: int, tick: Callable[[], None]) -> Tensor:
    """Token ids (samples, length - 1) int64 that follow BOS: a random first token, then samples at temperature 1.

    The random first token gives each text its own subject. `tick` is called once per position of each group.
    """
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(0, decoder.spec.vocab_size, (samples, 1), generator=random)
    groups = torch.split(first, group_size(decoder.spec, length, decoder.device))
    return torch.cat([_continued(decoder, part, length, random, tick) for part in groups])


@torch.no_grad()
def _continued(
    decoder: Decoder, first: Tensor, length: int, random: torch.Generator, tick: Callable[[], None]
) -> Tensor:
    spec, samples, device = decoder.spec, first.shape[0], decoder.device
    ids = first if spec.bos_id is None else torch.cat((torch.full((samples, 1), spec.bos_id), first), dim=1)
    total = length - 1 + (spec.bos_id is not None)
    cache = _room(spec, samples, total, device)
    ids = ids.to(device)
    step, valid = ids, 0
    while ids.shape[1] < total:
        past = None if valid == 0 else [(k[:, :, :valid], v[:, :, :valid]) for k, v in cache]
        logits, new = decoder(step, past)
        for (keys, values), (k, v) in zip(cache, new, strict=True):
            keys[:, :, valid : valid + step.shape[1]] = k
            values[:, :, valid : valid + step.shape[1]] = v
        valid += step.shape[1]
        probabilities = torch.softmax(logits[:, -1], dim=-1)
        if not bool(torch.isfinite(probabilities).all()):
            raise InputError("calibration: the model's own text has NaN logits", hint="are the weights intact?")
        # Inverse of the cumulative distribution: one number a text, where `multinomial` draws one for every token.
        # Of a single row a GPU may sum otherwise each time.
        rows = probabilities if samples > 1 else probabilities.expand(2, -1)
        cumulative = rows.cumsum(dim=-1)[:samples]
        drawn = torch.rand(samples, 1, generator=random).to(device) * cumulative[:, -1:]
        step = torch.searchsorted(cumulative, drawn, right=True).clamp(max=spec.vocab_size - 1)
        ids = torch.cat((ids, step), dim=1)
        tick()
    return ids[:, ids.shape[1] - (length - 1) :].cpu()


def _room(spec: ModelSpec, samples: int, length: int, device: torch.device) -> list[LayerCache]:
    shape = (samples, spec.num_kv_heads, length, spec.head_dim)
    return [(torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in spec.layers]
