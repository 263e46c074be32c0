"""A frozen model of only some of its decoder layers: what a compiler is tried on before it gets the whole.

The embedding, the last norm and the head stay, so that a slice is a whole model for every back end. Its integers are
not those of the same layers inside the whole model: every comparison is with the simulator of the same slice.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

from mobileicsa.core.errors import UsageError
from mobileicsa.program.frozen import FrozenModel

_NUMBERED = re.compile(r"(layers|prefix)\.(\d+)\.")
_Value = TypeVar("_Value")


def parse_layers(text: str, count: int) -> range:
    """ "START:STOP" of a model with `count` layers, as Python slices count: START included, STOP not.

    UsageError where the text is not of that form or leaves the model.
    """
    match = re.fullmatch(r"([0-9]*):([0-9]*)", text.strip())
    if match is None:
        raise UsageError(f"--layers {text}: is not of the form START:STOP", hint="0:2 means the first two layers")
    start, stop = int(match[1] or 0), int(match[2] or count)
    if not 0 <= start < stop <= count:
        raise UsageError(f"--layers {text}: the model has layers 0:{count}", hint="START must be below STOP")
    return range(start, stop)


def slice_layers(model: FrozenModel, layers: range) -> FrozenModel:
    """The model of these layers alone, counted from 0 again; its tensors are not copied.

    The prefix's own prediction is the whole model's and left out.
    """
    plan = model.plan
    if layers == range(plan.spec.num_layers):
        return model
    kept = replace(
        plan,
        spec=replace(plan.spec, layers=tuple(plan.spec.layers[i] for i in layers)),
        edges=_renumbered(plan.edges, layers),
        weights=_renumbered(plan.weights, layers),
    )
    tensors = _renumbered(model.tensors, layers)
    tensors.pop("prefix.logits", None)
    return FrozenModel(kept, tensors)


def _renumbered(named: dict[str, _Value], layers: range) -> dict[str, _Value]:
    """What belongs to `layers`, by its new number, and what belongs to no layer."""
    found = {}
    for name, value in named.items():
        match = _NUMBERED.match(name)
        if match is None:
            found[name] = value
        elif int(match[2]) in layers:
            found[f"{match[1]}.{int(match[2]) - layers.start}.{name[match.end() :]}"] = value
    return found
