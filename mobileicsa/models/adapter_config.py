"""adapter_config.json of a peft LoRA: what it scales, and what of it this project does not express."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mobileicsa.core.errors import InputError
from mobileicsa.models.config_reader import MAX_HIDDEN, ConfigReader

CONFIG_FILE = "adapter_config.json"
MERGE_HINT = "train a plain LoRA, or merge it with peft (merge_and_unload, save_pretrained) and quantise that model"
# Fields that change what is computed in a way that a low-rank product beside each linear cannot express.
REFUSED = {
    "use_dora": "DoRA rescales the base's weights",
    "bias": "biases of the base were trained",
    "lora_bias": "the update has a bias",
    "modules_to_save": "whole modules were trained",
    "trainable_token_indices": "embedding rows were trained",
    "target_parameters": "parameters outside of linears were trained",
    "layer_replication": "it repeats layers of the base",
    "alora_invocation_tokens": "it acts on some tokens only",
    "megatron_config": "its tensors are cut for Megatron",
    "use_qalora": "it pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters",
    "velora_config": "VeLoRA is not read",
    "monteclora_config": "MonteCLoRA is not read",
    "kasa_config": "KaSA rewrites the base's weights",
    "corda_config": "CorDA rewrites the base's weights",
    "lora_ga_config": "LoRA-GA rewrites the base's weights",
}
# No part of what a trained adapter computes.
HARMLESS = frozenset(
    (
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "exclude_modules",
        "lora_dropout",
        "fan_in_fan_out",
        "layers_to_transform",
        "layers_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",
        "init_lora_weights",
        "target_modules",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
    )
)
# Far beyond any use; a factor of it still leaves room in float32.
MAX_ALPHA = 1e9
# Patterns come from the file, and some take for ever on any name: groups that repeat are refused, and so many more.
MAX_PATTERNS, MAX_PATTERN, MAX_GROUPS, MAX_REPEATS = 1000, 1000, 16, 6
# Ends of "x*", "x+", "x{2,}" and "x?"; not "(?:" and not the laziness of "x*?".
_REPEAT = re.compile(r"[*+{]|(?<![(*+}])\?")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
# Starts that leave the base as it was.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """`rank` and `alpha` hold unless a pattern, a regular expression on the end of a module's name, says otherwise."""

    where: str
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    target_modules: tuple[str, ...] | str | None
    base_name: str

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_key(self.rank_pattern, module), self.rank)

    def alpha_of(self, module: str) -> float:
        return self.alpha_pattern.get(_key(self.alpha_pattern, module), self.alpha)

    def scale_of(self, module: str) -> float:
        """What the product of the two factors is multiplied by."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether `target_modules` names this module, as peft reads it."""
        wanted = self.target_modules
        if wanted is None or wanted == "all-linear":
            return True
        if isinstance(wanted, str):
            return re.fullmatch(wanted, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in wanted)


def read_config(config: Mapping[str, Any], where: str) -> AdapterConfig:
    """The checked fields; InputError naming the file, the field and a remedy where one asks for more than a LoRA."""
    reader = ConfigReader(config, where)
    if reader.value("peft_type") != "LORA":
        raise reader.error("peft_type", "'LORA'", hint="only LoRA adapters of peft are read")
    for field, why in REFUSED.items():
        if reader.value(field) not in (None, False, "none") and reader.value(field) != []:
            raise reader.error(field, f"it absent: {why}", hint=MERGE_HINT)
    if reader.value("init_lora_weights") not in PLAIN_STARTS:
        raise reader.error(
            "init_lora_weights",
            "a start that leaves the base's weights as they were",
            hint="save it as a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    unknown = [name for name in config if name not in HARMLESS and name not in REFUSED and config[name]]
    if unknown:
        raise reader.error(sorted(unknown)[0], "no field that this version does not know", hint=MERGE_HINT)
    return AdapterConfig(
        where=where,
        rank=reader.integer("r", MAX_HIDDEN, 8),
        alpha=_alpha(reader, "lora_alpha", reader.config.get("lora_alpha", 8)),
        rank_pattern={name: rank.integer(name, MAX_HIDDEN) for rank, name in _patterns(reader, "rank_pattern")},
        alpha_pattern={
            name: _alpha(alpha, name, alpha.config[name]) for alpha, name in _patterns(reader, "alpha_pattern")
        },
        rslora=reader.flag("use_rslora", False),
        target_modules=_target_modules(reader),
        base_name=_base_name(reader),
    )


def _patterns(reader: ConfigReader, field: str) -> list[tuple[ConfigReader, str]]:
    section = reader.section(field)
    if section is None:
        return []
    if len(section.config) > MAX_PATTERNS:
        raise reader.error(field, f"at most {MAX_PATTERNS} patterns", hint=MERGE_HINT)
    for name in section.config:
        _check_pattern(reader, field, name)
    return [(section, name) for name in section.config]


def _check_pattern(reader: ConfigReader, field: str, pattern: str) -> None:
    remedy = "name the modules, as peft does"
    if (
        len(pattern) > MAX_PATTERN
        or pattern.count("(") > MAX_GROUPS
        or len(_REPEAT.findall(pattern)) > MAX_REPEATS
        or _REPEATED_GROUP.search(pattern)
    ):
        expected = f"simple patterns of module names; {pattern[:80]!r} could be matched for ever"
        raise reader.error(field, expected, hint=remedy)
    try:
        _compiled(pattern)
    except (re.error, OverflowError) as error:
        raise reader.error(
            field, f"patterns of module names; {pattern[:80]!r} is none: {error}", hint=remedy
        ) from error


def _base_name(reader: ConfigReader) -> str:
    value = reader.value("base_model_name_or_path")
    if value is not None and not isinstance(value, str):
        raise reader.error("base_model_name_or_path", "the name of a model")
    return value or ""


def _alpha(reader: ConfigReader, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_ALPHA:
        raise reader.error(field, f"a number from 0 to {MAX_ALPHA:g}")
    return float(value)


def _target_modules(reader: ConfigReader) -> tuple[str, ...] | str | None:
    value = reader.value("target_modules")
    if value is None or isinstance(value, str):
        if value:
            _check_pattern(reader, "target_modules", value)
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise reader.error("target_modules", "a list of module names, or one regular expression")
    return tuple(value)


@functools.lru_cache(maxsize=4 * MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    """As peft looks a pattern up: it names the end of a module's name."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _key(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that fits the end of the module's name, as peft looks it up."""
    return next((pattern for pattern in patterns if _compiled(pattern).match(module)), module)


def check_known(config: AdapterConfig, found: list[str], known: list[str]) -> None:
    """InputError where tensors and `target_modules` contradict each other, or it names what no model here has.

    `found`: modules with tensors; `known`: last parts of the names of modules that can have an adapter.
    """
    for module in found:
        if not config.targets(module):
            raise InputError(
                f"{config.where}: target_modules does not name {module}, which the adapter has tensors of",
                hint="config and tensors belong to two adapters: save it again",
            )
    if not isinstance(config.target_modules, tuple):
        return
    for name in config.target_modules:
        used = any(module == name or module.endswith(f".{name}") for module in found)
        if not used and name.rpartition(".")[2] not in known:
            raise InputError(
                f"{config.where}: target_modules names {name[:80]!r}, which this model does not have",
                hint=f"adapters are read of {', '.join(known)}",
            )
