"""Mixed precision: which linears get 8-bit weights, and which 16-bit inputs, decided before the model is quantised."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mobileicsa.calibrate.stream import WeightSource
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.quantize.budget import Candidate, Limits, by_worth, choose, increase_of, loss_of
from mobileicsa.quantize.packed import PROMOTED_BITS, bits_of, packed_bytes, weight_bytes, weight_shapes
from mobileicsa.quantize.recipe import Learning, Recipe
from mobileicsa.quantize.sensitivity import Sensitivity, measure
from mobileicsa.quantize.steps import Progress, StageStore

STAGE = "sensitivity"
# What learning leaves of a loss: of the weights' where latent ones learn, and of the edges' (SmolLM2-135M, KL of W4A8
# above that of 8-bit weights 0.147 -> 0.074; of W8A8 0.044 -> 0.033). For the prediction: it changes no order.
LATENT_LEAVES, LEARNING_LEAVES = 0.5, 0.75

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixed:
    """`promoted`: names of the weights that get 8 bits; `wide`: of the edges that get 16; `report`: limits, sizes in
    bytes, predictions."""

    promoted: frozenset[str]
    wide: tuple[str, ...]
    report: dict[str, Any]


def mix(
    spec: ModelSpec,
    weights: WeightSource,
    prefix: tuple[int, ...],
    windows: Tensor,
    scheme: QuantScheme,
    recipe: Recipe,
    limits: Limits,
    *,
    seed: int,
    store: StageStore,
    run: str,
    progress: Progress,
) -> Mixed:
    """Measure (a stage that is kept), then choose; warns where a limit keeps the other from being met."""
    if not store.done(STAGE, run):
        found = measure(spec, weights, prefix, windows, scheme, recipe, seed, lambda total: progress.step(STAGE, total))
        store.save(STAGE, run, {}, found.to_json())
    return chosen(spec, scheme, recipe.learn, limits, Sensitivity(**store.load(STAGE)[1]))


def chosen(
    spec: ModelSpec, scheme: QuantScheme, learn: Sequence[Learning], limits: Limits, sensitivity: Sensitivity
) -> Mixed:
    """The choice under `limits`, from what was measured."""
    shapes = weight_shapes(spec)
    of_weights = LATENT_LEAVES if any(stage.weights == "latent" for stage in learn) else 1.0
    of_edges = LEARNING_LEAVES if learn else 1.0
    candidates = [
        Candidate(
            name=name,
            saving=of_weights * (plain - sensitivity.promoted[name]),
            cost=weight_bytes(shapes[name], PROMOTED_BITS) - weight_bytes(shapes[name], scheme.weight_bits),
        )
        for name, plain in sensitivity.plain.items()
        if scheme.weight_bits < PROMOTED_BITS
    ]
    losses = [
        sensitivity.prefix + of_edges * sensitivity.edges + of_weights * sum(found.values())
        for found in (sensitivity.plain, sensitivity.promoted)
    ]
    least = packed_bytes(spec, bits_of(spec, scheme))
    target = None if limits.max_ppl_increase is None else loss_of(limits.max_ppl_increase)
    spare = None if limits.budget_bytes is None else limits.budget_bytes - least
    promoted = choose(candidates, loss=losses[0], spare_bytes=spare, loss_target=target)
    names = frozenset(candidate.name for candidate in promoted)
    loss = losses[0]
    for candidate in promoted:  # one by one, as `choose` does: a sum may round to the other side of the target
        loss -= candidate.saving
    # Inputs after weights, for 16 bits there cost time at every token; and only where a loss is asked for.
    inputs = [Candidate(name=name, saving=of_edges * lost, cost=1) for name, lost in sensitivity.inputs.items()]
    wide = choose(inputs, loss=loss, loss_target=target) if limits.wide_inputs and target is not None else []
    for candidate in wide:
        loss -= candidate.saving
    shortfall = None
    if target is not None and loss > target:
        every = limits.budget_bytes is None or len(promoted) == len(by_worth(candidates))
        shortfall = _shortfall(scheme, limits, loss, every)
    if shortfall is not None:
        log.warning("%s", shortfall)
    return Mixed(
        names,
        tuple(sorted(candidate.name for candidate in wide)),
        {
            "limits": limits.to_json(),
            "packed_bytes": packed_bytes(spec, bits_of(spec, scheme, names)),
            "packed_bytes_least": least,
            "packed_bytes_most": packed_bytes(spec, bits_of(spec, scheme, list(sensitivity.plain))),
            "candidates": len(candidates),
            "promoted": [{"weight": c.name, "saving": c.saving, "bytes": c.cost} for c in promoted],
            "inputs": [{"edge": c.name, "saving": c.saving} for c in wide],
            "input_candidates": len(inputs) if limits.wide_inputs else 0,
            "losses": {"edges": of_edges * sensitivity.edges, "prefix": sensitivity.prefix},
            "predicted_increase": increase_of(loss),
            "predicted_increase_least": increase_of(losses[1]),
            "predicted_increase_most": increase_of(losses[0]),
            "shortfall": shortfall,
        },
    )


def _shortfall(scheme: QuantScheme, limits: Limits, loss: float, every: bool) -> str:
    if every:
        most = ["every linear at 8 bits"] if scheme.weight_bits < PROMOTED_BITS else []
        most += ["every linear's input at 16"] if limits.wide_inputs else []
        reason = (
            f"even with {' and '.join(most)}: the rest comes from {'other ' * limits.wide_inputs}activations and prefix"
        )
    else:
        reason = f"with what --budget-bytes {limits.budget_bytes} holds"
    return f"--max-ppl-increase {limits.max_ppl_increase:g}: {increase_of(loss):.3g} is expected {reason}"
