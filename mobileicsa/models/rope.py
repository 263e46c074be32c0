"""Inverse frequencies of the rotary embedding for each scaling type that a static graph can hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mobileicsa.core.spec import RopeSpec
from mobileicsa.models.config_reader import MAX_CONTEXT, ConfigReader

logger = logging.getLogger(__name__)

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class RopeRequest:
    """Everything a scaling type may need: where its parameters are, and the model's own sizes."""

    parameters: ConfigReader
    theta: float
    dim: int
    max_context: int
    trained_context: int

    def base(self) -> Tensor:
        """theta ** (2i / dim), float32 as transformers computes it."""
        power: Tensor = self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        return power

    def stretch(self) -> float:
        """`factor`, or how far the context is beyond the trained one."""
        return self.parameters.number("factor", self.max_context / self.trained_context)


Frequencies = tuple[Tensor, float]


def _default(request: RopeRequest) -> Frequencies:
    return 1.0 / request.base(), 1.0


def _linear(request: RopeRequest) -> Frequencies:
    return 1.0 / request.base() / request.parameters.number("factor"), 1.0


def _llama3(request: RopeRequest) -> Frequencies:
    """Long wavelengths are stretched, short ones kept, those between blended."""
    parameters = request.parameters
    factor = parameters.number("factor")
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if high <= low:
        raise parameters.error("high_freq_factor", f"a number above low_freq_factor {low:g}")
    frequency = 1.0 / request.base()
    wavelength = 2 * math.pi / frequency
    blend = ((request.trained_context / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * frequency / factor + blend * frequency, 1.0


def _yarn(request: RopeRequest) -> Frequencies:
    """Interpolate the dimensions that turn slowly, keep those that turn fast, a linear ramp between."""
    parameters, dim = request.parameters, request.dim
    factor = request.stretch()

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, all_dim = parameters.optional_number("mscale", None), parameters.optional_number("mscale_all_dim", None)
    inferred = magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)

    def dimension(rotations: float) -> float:
        """The dimension that makes so many rotations over the trained context."""
        return dim * math.log(request.trained_context / (rotations * 2 * math.pi)) / (2 * math.log(request.theta))

    low, high = dimension(parameters.number("beta_fast", 32.0)), dimension(parameters.number("beta_slow", 1.0))
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the published formula's guard against 0/0
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    base = request.base()
    frequency = 1.0 / (factor * base) * ramp + 1.0 / base * (1 - ramp)
    return frequency, parameters.number("attention_factor", inferred)


def _longrope(request: RopeRequest) -> Frequencies:
    """One divisor per frequency. Only the short table is static: see `read_rope` on the context."""
    parameters = request.parameters
    divisors = parameters.items("short_factor", (int, float), request.dim // 2)
    if divisors is None or len(parameters.value("short_factor")) != request.dim // 2:
        raise parameters.error("short_factor", f"a list of {request.dim // 2} numbers")
    if not all(math.isfinite(d) and d > 0 for d in divisors):
        raise parameters.error("short_factor", "finite numbers above 0")
    factor = request.stretch()
    inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(request.trained_context))
    frequency = 1.0 / (torch.tensor(divisors, dtype=torch.float32) * request.base())
    return frequency, parameters.number("attention_factor", inferred)


TYPES: Mapping[str, Callable[[RopeRequest], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


@dataclass(frozen=True, kw_only=True)
class Rope:
    """A rotary embedding and the longest context for which it is exact."""

    spec: RopeSpec
    max_context: int


def read_rope(
    reader: ConfigReader,
    head_dim: int,
    max_context: int,
    *,
    layer_type: str | None = None,
    theta_field: str = "rope_theta",
    default_theta: float = 10_000.0,
    default_partial: float | None = None,
    trained_context: int | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Rope:
    """RoPE of a config in the transformers 4 form (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).

    - layer_type: take this entry of a `rope_parameters` that has one per layer type (Gemma 3);
    - default_partial: the family's share of rotated dimensions; None where the family rotates whole heads;
    - trained_context: the family's value where the config gives no `original_max_position_embeddings`;
    - renamed: the family's other names of scaling types.
    """
    parameters = _parameters(reader, layer_type)
    kind = parameters.value("rope_type") or parameters.value("type") or "default"
    kind = (renamed or {}).get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in TYPES:
        field = "rope_type" if parameters.has("rope_type") else "type"
        raise parameters.error(
            field,
            "one of " + ", ".join(sorted(TYPES)),
            hint="types that change with the length of the text (dynamic) have no static graph",
        )
    theta = parameters.number("rope_theta", reader.number(theta_field, default_theta), above=1.0)
    trained = _trained_context(reader, parameters, trained_context or max_context)
    if kind == "longrope" and max_context > trained:
        # Beyond the trained context the model switches to its long table: a static graph holds one table.
        logger.warning(
            "%s: longrope is exact up to %d positions; the context of %d is cut to that",
            reader.where,
            trained,
            max_context,
        )
    request = RopeRequest(
        parameters=parameters,
        theta=theta,
        dim=_rotated(reader, parameters, head_dim, default_partial),
        max_context=max_context,
        trained_context=trained,
    )
    frequency, attention_factor = TYPES[kind](request)
    spec = RopeSpec(inv_freq=tuple(frequency.tolist()), attention_factor=attention_factor)
    return Rope(spec=spec, max_context=min(max_context, trained) if kind == "longrope" else max_context)


def _parameters(reader: ConfigReader, layer_type: str | None) -> ConfigReader:
    field = "rope_scaling" if reader.value("rope_scaling") else "rope_parameters"
    parameters = reader.section(field) or ConfigReader({}, reader.where, f"{reader.path}{field}.")
    if not any(parameters.has(name) for name in LAYER_TYPES):
        # Only the old form, which means the global RoPE, may give this family one set.
        if layer_type is not None and field == "rope_parameters" and reader.section(field) is not None:
            raise reader.error(field, "one set of parameters for each of " + ", ".join(LAYER_TYPES))
        return parameters
    if layer_type is None:
        raise reader.error(field, "one set of parameters for all layers, as this family has")
    return parameters.section(layer_type) or ConfigReader({}, reader.where, f"{parameters.path}{layer_type}.")


def _trained_context(reader: ConfigReader, parameters: ConfigReader, default: int) -> int:
    """The top-level field wins over the nested one, as in transformers."""
    nested = parameters.integer("original_max_position_embeddings", MAX_CONTEXT, default)
    return reader.integer("original_max_position_embeddings", MAX_CONTEXT, nested)


def _rotated(reader: ConfigReader, parameters: ConfigReader, head_dim: int, default: float | None) -> int:
    source = parameters if parameters.value("partial_rotary_factor") is not None else reader
    share = source.number("partial_rotary_factor", 1.0 if default is None else default, maximum=1.0)
    if default is None and share != 1.0:
        raise source.error("partial_rotary_factor", "1: this family rotates whole heads")
    rotated = int(head_dim * share)
    if rotated < 2 or rotated % 2:
        raise source.error("partial_rotary_factor", f"a share that rotates an even part of head_dim {head_dim}")
    return rotated
