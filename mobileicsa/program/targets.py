"""Targets by name: the YAML files of every package registered in the entry-point group `mobileicsa.targets`."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from importlib.resources import files

import yaml

from mobileicsa.core.errors import InputError
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
