"""The training loop of the small model: AdamW, warm-up and cosine, a checkpoint at every look at the validation text.

A run limited in steps gives the same weights again on the same machine and number of threads, interrupted or not. A run
limited in minutes makes as many steps as fit, and its learning rate follows the clock: seed, batches and their order
are the same, the number of steps is not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.small_model.settings import BATCH, CONTEXT, HEAD_DIM, Settings
from benchmarks.small_model.state import State
from benchmarks.small_model.tokens import BOS_ID, EOS_ID, Batches, labels_of
from mobileicsa.core.errors import MobileICSAError
from mobileicsa.quantize.learn_math import product_dtype

LEARNING_RATE, LAST_RATE = 1e-3, 0.05  # the second as a part of the first
WARM_UP = 0.03  # of the run
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
CLIP_NORM = 1.0
CHECK_STEPS = 200


def new_state(settings: Settings) -> State:
    """Random weights, seeded; step 0."""
    torch.manual_seed(settings.seed)
    heads = settings.hidden // HEAD_DIM
    config = LlamaConfig(
        vocab_size=settings.vocab,
        hidden_size=settings.hidden,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        # In windows of 256, PyTorch's fused attention for the CPU is slower in bfloat16 than two plain products.
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return State(model, torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True))


def rate_at(share: float) -> float:
    """Learning rate when that part of the run is done: up in a line, down along a cosine."""
    if share < WARM_UP:
        return LEARNING_RATE * (share / WARM_UP)
    fall = 0.5 * (1 + math.cos(math.pi * min((share - WARM_UP) / (1 - WARM_UP), 1.0)))
    return LEARNING_RATE * (LAST_RATE + (1 - LAST_RATE) * fall)


def loss_of(model: LlamaForCausalLM, windows: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy (nats a token) of windows (N, T) behind BOS, products in `dtype`."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss: Tensor = model(input_ids=windows, labels=labels_of(windows), use_cache=False).loss
    return loss


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, windows: Tensor, dtype: torch.dtype) -> float:
    """The same over many windows, every scored token counted once."""
    model.eval()
    total, count = 0.0, 0
    for part in torch.split(windows, BATCH):
        scored = int((labels_of(part)[:, 1:] >= 0).sum())
        total += float(loss_of(model, part, dtype)) * scored
        count += scored
    model.train()
    return total / count


def train(
    state: State,
    settings: Settings,
    batches: Batches,
    validation: Tensor,
    *,
    tick: Callable[[], None],
    checked: Callable[[dict[str, Any]], None],
) -> None:
    """Train `state` in place to the end of its run.

    `tick` is called once per `settings.unit` done; `checked` after every look at the `validation` windows (N, T), when
    `state` is fit to be kept, with the history's new entry. Raises MobileICSAError if the loss is not finite.
    """
    dtype = product_dtype(torch.device("cpu"))
    model, optimizer = state.model, state.optimizer
    model.train()
    begun, before = time.monotonic(), state.seconds
    ticks, losses = 0, []
    while (share := settings.share(state.steps, state.seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(share)
        loss = loss_of(model, batches.at(state.steps), dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise MobileICSAError(
                f"training: the loss is {losses[-1]} at step {state.steps}", hint="try another --seed"
            )
        state.steps += 1
        state.seconds = before + time.monotonic() - begun
        over = settings.share(state.steps, state.seconds) >= 1
        if over or state.steps % CHECK_STEPS == 0:
            state.look(sum(losses) / len(losses), mean_loss(model, validation, dtype))
            losses = []
            state.seconds = before + time.monotonic() - begun
            checked(state.history[-1])
        done = min(int(settings.total * settings.share(state.steps, state.seconds)), settings.total)
        while ticks < done:
            tick()
            ticks += 1
