"""Targets by name: the YAML files of every package registered in the entry-point group `mobileicsa.targets`."""

from __future__ import annotations

import difflib
from dataclasses import replace
from importlib.metadata import entry_points
from importlib.resources import files

import yaml

from mobileicsa.core.errors import EnvironmentFault, InputError, SchemeError
from mobileicsa.core.scheme import SCHEMES, QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.program.backend import TargetedBackend, find_backend

DEFAULT_TARGET = "host-cpu"


def all_targets() -> dict[str, Target]:
    """Every known target; a malformed file is an error, not a missing target."""
    found: dict[str, Target] = {}
    for point in entry_points(group="mobileicsa.targets"):
        for entry in sorted(files(point.value).iterdir(), key=lambda e: e.name):
            if entry.name.endswith(".yaml"):
                target = Target.from_mapping(yaml.safe_load(entry.read_text(encoding="utf-8")), entry.name)
                found[target.name] = target
    return found


def find_target(name: str) -> Target:
    targets = all_targets()
    if name not in targets:
        near = difflib.get_close_matches(name, targets, n=1)
        raise InputError(
            f"--target {name}: unknown; targets are {', '.join(sorted(targets))}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return targets[name]


def fitting(target: Target, spec: ModelSpec) -> Target:
    """The target with a context no longer than the model's."""
    if spec.max_context >= target.context:
        return target
    return replace(target, context=spec.max_context, prefill_chunk=min(target.prefill_chunk, spec.max_context // 2))


def target_of_backend(backend: str) -> Target:
    """The back end's own choice, or the first target, by name, that it writes alone, or else with others."""
    chosen = find_backend(backend)
    if isinstance(chosen, TargetedBackend):
        return find_target(chosen.target)
    able = [target for target in all_targets().values() if backend in target.backends]
    if not able:
        raise InputError(f"--backend {backend}: no target is written by it", hint="`mobileicsa targets` lists them")
    return min(able, key=lambda target: (len(target.backends), target.name))


def check_scheme(scheme: QuantScheme, target: Target) -> None:
    """SchemeError where the target's linears do not multiply what the scheme gives them, or not its codes."""
    _check_codes(scheme, target)
    missing = _missing_pairs(scheme, target)
    if missing:
        able = [other.name for other in SCHEMES.values() if not _missing_pairs(other, target)]
        raise SchemeError(
            f"--target {target.name}: linears take {', '.join(target.linears)} in integers, {scheme.name} has "
            f"{', '.join(missing)}",
            hint=f"quantise with --scheme {' or '.join(able)}" if able else None,
        )


def _missing_pairs(scheme: QuantScheme, target: Target) -> list[str]:
    """Pairs of input and weight bits that the scheme's linears have and the target's do not multiply."""
    if not target.linears:
        return []
    inputs = {scheme.bits(role) for role in ("norm_out", "attention_out", "down_in")} | (
        {16} if scheme.wide_edges else set()
    )
    pairs = {f"a{bits}w{scheme.weight_bits}" for bits in inputs} | {f"a{scheme.bits('head_in')}w{scheme.head_bits}"}
    return sorted(pairs - set(target.linears))


def check_size(target: Target, packed_bytes: int) -> None:
    """EnvironmentFault where the packed weights alone exceed what the target's device takes at once."""
    if target.max_bytes is not None and packed_bytes > target.max_bytes:
        raise EnvironmentFault(
            f"--target {target.name}: takes programs of at most {target.max_bytes} bytes, the weights alone have "
            f"{packed_bytes}",
            hint="use a scheme with fewer bits, or export parts of the model with --layers START:STOP",
        )


def _check_codes(scheme: QuantScheme, target: Target) -> None:
    """SchemeError where the scheme's 4-bit weights may have a code that the target's do not."""
    if scheme.narrow_weights or target.int4_full_range:
        return
    able = sorted(name for name, other in all_targets().items() if other.int4_full_range)
    raise SchemeError(
        f"--target {target.name}: takes 4-bit weights from -7 to 7, {scheme.name} with codes: full has -8 too",
        hint=f"quantise with codes=narrow, or for {' or '.join(able)} only",
    )
