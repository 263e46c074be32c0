"""The ablation's recipes: a bundled one with single parts taken away or exchanged."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Variant:
    """`changes`: recipe fields by path (list entries by number); None takes the field or entry away."""

    name: str
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    scheme: str = "w4a8"


# MobileQuant's own ablation (arXiv 2408.13933, section 4): what is learned, and whether in one loss or block by block.
MOBILEQUANT = (
    Variant("mobilequant", "mobilequant"),
    Variant("mobilequant without scalings", "mobilequant", {"learn.0.lr_equivalent": 0.0}),
    Variant("mobilequant without clipping", "mobilequant", {"learn.0.lr_scales": 0.0}),
    Variant("mobilequant without ranges", "mobilequant", {"learn.0.lr_ranges": 0.0}),
    Variant("mobilequant without smoothing start", "mobilequant", {"smoothing": "off"}),
    Variant("mobilequant layer by layer", "omniquant"),
    # Not MobileQuant's: how much of what separates it from ours is the massive activations behind BOS.
    Variant("mobilequant with our prefix", "mobilequant", {"prefix_tokens": 2}),
)
OURS = (
    Variant("ours", "learned"),
    Variant("ours at the first positions only", "learned", {"calibration.spread": 0.0}),
    Variant("ours without prefix", "learned", {"prefix_tokens": 0}),
    Variant("ours without rotations", "learned", {"rotation": "off"}),
    Variant("ours with learned rotations", "learned", {"rotation": "learned"}),
    Variant("ours without smoothing", "learned", {"smoothing": "off"}),
    Variant("ours with min-max ranges", "learned", {"ranges": "minmax"}),
    Variant("ours with clipped rounding, not GPTQ", "learned", {"weights": "clip"}),
    Variant("ours with half asymmetric GPTQ", "learned", {"asymmetric": 0.5}),
    Variant("ours with head-room 1.1", "learned", {"headroom": 1.1}),
    Variant("ours with bias correction", "learned", {"bias_correction": True}),
    Variant("ours with the -8 code", "learned", {"codes": "full"}),
    Variant("ours without learning", "learned", {"learn": []}),
    Variant("ours without block learning", "learned", {"learn.0": None}),
    Variant("ours without end-to-end learning", "learned", {"learn.1": None}),
    Variant("ours, end to end on hidden states", "learned", {"learn.1.loss": "hidden"}),
    Variant("ours, end to end without ranges", "learned", {"learn.1.lr_ranges": 0.0}),
    Variant("ours, end to end without weight scales", "learned", {"learn.1.lr_scales": 0.0}),
    Variant("ours, end to end without gains", "learned", {"learn.1.lr_gains": 0.0}),
    Variant("ours, end to end without prefix rows", "learned", {"learn.1.lr_prefix": 0.0}),
)
VARIANTS = MOBILEQUANT + OURS


def write_recipe(variant: Variant, folder: Path) -> Path:
    """The variant as a recipe file. KeyError or IndexError where a change names a field that its recipe lacks."""
    text = (files("mobileicsa") / "recipes" / f"{variant.recipe}.yaml").read_text(encoding="utf-8")
    recipe = changed(yaml.safe_load(text), variant.changes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(variant)}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def slug(variant: Variant) -> str:
    return variant.name.replace(",", "").replace(" ", "-")


def changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(recipe)
    for path, value in changes.items():
        *parents, leaf = (int(part) if part.isdecimal() else part for part in path.split("."))
        place: Any = result
        for part in parents:
            place = place[part]
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
    return result
