"""The supported model families: `model_type` -> the module of that name beside this file."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.config_reader import ConfigReader
from mobileicsa.models.sources import Source

# The only names that are ever imported; a config's own string never reaches the import system.
SUPPORTED = ("gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "stablelm")


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A multi-modal wrapper: its text decoder's family and the config section that describes it."""

    model_type: str
    section: str


ALIASES = {"gemma3": Alias(model_type="gemma3_text", section="text_config")}


class Family(Protocol):
    """What a family's module offers."""

    def spec_from_config(self, config: Mapping[str, Any], where: str) -> ModelSpec: ...

    def tensors(self, spec: ModelSpec) -> dict[str, Source]: ...


def family_named(model_type: str, where: str) -> Family:
    """The module of a supported `model_type`; `where` names the file that asks for it."""
    if model_type not in SUPPORTED:
        near = difflib.get_close_matches(model_type[:64], (*SUPPORTED, *ALIASES), n=1, cutoff=0.5)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise InputError(
            f"{where}: model_type {model_type[:64]!r} is not supported{nearest}",
            hint=f"supported: {', '.join(sorted((*SUPPORTED, *ALIASES)))}. "
            "Adding a family is one file: see docs/adding-a-family.md",
        )
    return cast(Family, importlib.import_module(f"mobileicsa.models.{model_type}"))


def spec_from_config(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The spec that a config.json describes, whatever its family."""
    reader = ConfigReader(config, where)
    name = reader.value("model_type")
    if not isinstance(name, str) or not name:
        raise reader.error("model_type", "one of " + ", ".join(sorted((*SUPPORTED, *ALIASES))))
    alias = ALIASES.get(name)
    if alias is None:
        return family_named(name, where).spec_from_config(config, where)
    section = reader.section(alias.section)
    if section is None:
        raise reader.error(alias.section, "the text decoder's config")
    text = dict(section.config)
    if reader.value("tie_word_embeddings") is not None:
        text["tie_word_embeddings"] = reader.value("tie_word_embeddings")  # the wrapper decides on tying
    return family_named(alias.model_type, where).spec_from_config(text, f"{where} ({alias.section})")
