"""Limits on a 4-bit scheme's size and loss, checked before heavy work; and how large the packed weights will be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mobileicsa.core.errors import UsageError
from mobileicsa.core.scheme import SCHEMES, QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.program.targets import all_targets
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.packed import PROMOTED_BITS, bits_of, packed_bytes, promotable
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rotation import rotated_spec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PackedSize:
    """Bytes of all packed weights: without any promoted linear, and with as many as the limits could ask for."""

    least: int
    most: int


def limits_for(
    scheme: QuantScheme, targets: Sequence[Target], budget_bytes: int | None, max_ppl_increase: float | None
) -> Limits | None:
    """What the user allows, or None; UsageError where scheme and targets leave nothing to choose."""
    if budget_bytes is None and max_ppl_increase is None:
        return None
    wide_inputs = all(target.int16_inputs for target in targets)
    if scheme.weight_bits >= PROMOTED_BITS and (budget_bytes is not None or not wide_inputs):
        flag = "--max-ppl-increase" if budget_bytes is None else "--budget-bytes"
        low = [known.name for known in SCHEMES.values() if known.weight_bits < PROMOTED_BITS]
        able = sorted(name for name, target in all_targets().items() if target.int16_inputs)
        other = f", or --target {' or '.join(able)}, which takes 16-bit inputs" if budget_bytes is None else ""
        raise UsageError(
            f"{flag}: scheme {scheme.name} has {scheme.weight_bits}-bit weights already, there is nothing to promote",
            hint=f"use --scheme {' or '.join(low)}{other}",
        )
    return Limits(budget_bytes=budget_bytes, max_ppl_increase=max_ppl_increase, wide_inputs=wide_inputs)


def forecast(
    spec: ModelSpec, scheme: QuantScheme, recipe: Recipe, limits: Limits | None
) -> tuple[PackedSize, list[str]]:
    """The size, and what is odd about the budget; UsageError where not even the scheme's own bits fit in it."""
    if recipe.rotation != "off":
        spec = rotated_spec(spec)
    least = packed_bytes(spec, bits_of(spec, scheme))
    if limits is None:
        return PackedSize(least=least, most=least), []
    most = packed_bytes(spec, bits_of(spec, scheme, promotable(spec)))
    budget = limits.budget_bytes
    if budget is None:
        return PackedSize(least=least, most=most), []
    if budget < least:
        raise UsageError(
            f"--budget-bytes {budget}: the weights take {least} bytes at least ({scheme.name} with every linear at "
            f"{scheme.weight_bits} bits), and {most} with all at {PROMOTED_BITS}",
            hint=f"give a number from {least} to {most}",
        )
    if budget < most:
        return PackedSize(least=least, most=budget), []
    note = (
        f"--budget-bytes {budget} is no limit: with every linear at {PROMOTED_BITS} bits the weights take {most} "
        f"bytes, at {scheme.weight_bits} bits {least}"
    )
    log.warning("%s", note)
    return PackedSize(least=least, most=most), [note]
