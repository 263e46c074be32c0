"""What a finished model has lost in perplexity, on text that the float model writes with a seed of its own.

On such text the loss is what the prediction estimates (KL to the float model), and no run has calibrated on it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.artifact.plan_build import BuildPlan
from mobileicsa.calibrate.device import compute_device, naming_memory
from mobileicsa.calibrate.generated import generate_windows, passes
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import load_decoder
from mobileicsa.quantize.budget import increase_of
from mobileicsa.quantize.steps import Progress, StageStore

WINDOWS, LENGTH = 8, 256
STAGE = "held-out"

log = logging.getLogger(__name__)


def measure_increase(
    plan: BuildPlan, store: StageStore, open_model: Callable[[], QuantizedModel], progress: Progress
) -> dict[str, Any]:
    """Perplexities of both models and their ratio less 1, with its standard error over tokens.

    The float model's part is a stage that is kept; it is gone from memory when `open_model` is called. Warns where
    the increase is more than the limit.
    """
    if not store.done(STAGE, plan.run_id):
        windows, losses = _float_part(plan, progress)
        store.save(STAGE, plan.run_id, {"windows": windows, "losses": losses}, {})
    kept, _ = store.load(STAGE)
    windows, before = kept["windows"], kept["losses"].double()
    model = open_model()
    tick = progress.step("held-out perplexity", windows.shape[0])
    rows = []
    for window in windows:
        rows.append(_losses(model.logits(window.tolist()), window))
        tick()
    model.close()
    after = torch.stack(rows).double()
    change = after - before
    increase = increase_of(float(change.mean()))
    limit = None if plan.limits is None else plan.limits.max_ppl_increase
    met = None if limit is None else increase <= limit
    if met is False:
        log.warning("--max-ppl-increase %g: %.3g was measured on held-out text", limit, increase)
    return {
        "float_perplexity": 1 + increase_of(float(before.mean())),
        "perplexity": 1 + increase_of(float(after.mean())),
        "increase": increase,
        "standard_error": (1 + increase) * float(change.std()) / math.sqrt(change.numel()),
        "windows": windows.shape[0],
        "tokens": change.numel(),
        "met": met,
    }


@naming_memory()
def _float_part(plan: BuildPlan, progress: Progress) -> tuple[Tensor, Tensor]:
    """Windows (N, T) of token ids behind BOS, and the float model's losses (N, T - 1) of all but their first."""
    decoder = load_decoder(plan.checkpoint).to(compute_device())
    # As many tokens as fit behind the longest prefix, of which the first is random and not scored.
    room = plan.spec.max_context - max(plan.recipe.prefix_tokens, 1)
    length = max(min(LENGTH, room + 1), 3)
    tick = progress.step("held-out text", passes(WINDOWS, length, plan.spec, decoder.device))
    windows = generate_windows(decoder, WINDOWS, length, plan.options.seed + 1, tick)
    bos = plan.spec.bos_id
    return windows, torch.stack([_losses(_float_logits(decoder, bos, window), window) for window in windows])


@torch.no_grad()
def _float_logits(decoder: Decoder, bos: int | None, window: Tensor) -> Tensor:
    fed = window if bos is None else torch.cat((torch.tensor([bos]), window))
    logits: Tensor = decoder(fed[None, :-1].to(decoder.device))[0][0]
    return logits.cpu()


def _losses(logits: Tensor, window: Tensor) -> Tensor:
    """-log p (T - 1,) of a window's tokens (T,) but its first; the last T - 1 rows of `logits` predict them."""
    targets = window[1:]
    return -torch.log_softmax(logits[-len(targets) :], dim=-1).gather(1, targets[:, None])[:, 0]
