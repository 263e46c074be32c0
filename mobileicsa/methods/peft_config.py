"""`adapter_config.json`: the part of peft's LoRA configuration that plain LoRA on linears needs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileicsa.core.errors import InputError
from mobileicsa.io.json_file import read_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 1 << 16
# Keys that change what the weights mean, with the only values read: anything else would be silently dropped.
PLAIN: Mapping[str, tuple[object, ...]] = {
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "use_qalora": (None, False),
    "alora_invocation_tokens": (None, []),
}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Ranks and alphas: `rank` and `alpha` hold where `ranks` and `alphas` (patterns of module names) say nothing.

    `root_scaling` divides alpha by sqrt(rank) instead of rank (rsLoRA).
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    base: str = ""
    root_scaling: bool = False

    def rank_of(self, name: str) -> int:
        return int(_matching(self.ranks, name, self.rank))

    def scaling(self, name: str) -> float:
        """What multiplies B A."""
        rank = self.rank_of(name)
        return float(_matching(self.alphas, name, self.alpha)) / (math.sqrt(rank) if self.root_scaling else rank)

    def check_modules(self, names: Collection[str], folder: Path) -> None:
        """InputError for a pattern that is no module's name: peft might read it as a regular expression."""
        for pattern in (*self.ranks, *self.alphas):
            if not any(_matches(pattern, name) for name in names):
                raise InputError(f"{folder / CONFIG_FILE}: pattern {pattern[:200]!r} is no module of the adapter")

    def to_json(self) -> dict[str, Any]:
        """The file's content, as peft reads it."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": self.root_scaling,
            "target_modules": list(self.targets),
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": dict(self.alphas),
        }

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """The configuration of an adapter folder; InputError for anything but plain LoRA."""
        path = folder / CONFIG_FILE
        data = read_json(path)
        if data.get("peft_type") != "LORA":
            raise InputError(f"{path}: peft_type is {data.get('peft_type')!r}: only LORA is read")
        for key, allowed in PLAIN.items():
            if data.get(key) not in allowed:
                raise InputError(f"{path}: {key} is {data[key]!r}: only plain LoRA on linears is read")
        return cls(
            targets=tuple(_names(data.get("target_modules"))),
            rank=_rank(data.get("r"), f"{path}: r"),
            alpha=_alpha(data.get("lora_alpha"), f"{path}: lora_alpha"),
            ranks={key: _rank(value, f"{path}: rank of {key!r}") for key, value in _table(data, "rank_pattern", path)},
            alphas={
                key: _alpha(value, f"{path}: alpha of {key!r}") for key, value in _table(data, "alpha_pattern", path)
            },
            base=str(data.get("base_model_name_or_path") or ""),
            root_scaling=data.get("use_rslora") is True,
        )


def _matching(patterns: Mapping[str, float], name: str, default: float) -> float:
    """The value of the first pattern that is the name or its end, as peft matches them."""
    return next((value for pattern, value in patterns.items() if _matches(pattern, name)), default)


def _matches(pattern: str, name: str) -> bool:
    # Taken literally: a hostile regular expression could run for ever.
    return name == pattern.removeprefix("^") or name.endswith(f".{pattern}")


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _table(data: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, Any]]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} is not an object")
    return list(value.items())


def _rank(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise InputError(f"{where} is {value!r}, expected an integer of at least 1")
    return value


def _alpha(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {value!r}, expected a number")
    return float(value)
