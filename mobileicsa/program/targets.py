"""Targets by name: the YAML files of every package registered in the entry-point group `mobileicsa.targets`."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from importlib.resources import files

import yaml

from mobileicsa.core.errors import InputError, SchemeError
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.target import Target

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


def check_codes(scheme: QuantScheme, target: Target) -> None:
    """SchemeError where the scheme's 4-bit weights may have a code that the target's do not."""
    if scheme.narrow_weights or target.int4_full_range:
        return
    able = sorted(name for name, other in all_targets().items() if other.int4_full_range)
    raise SchemeError(
        f"--target {target.name}: takes 4-bit weights from -7 to 7, {scheme.name} with codes: full has -8 too",
        hint=f"quantise with codes=narrow, or for {' or '.join(able)} only",
    )
