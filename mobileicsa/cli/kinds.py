"""What kind of model or artifact a command was given, and which of its handlers answers for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT, HINTS, kind_of
from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.io.json_file import read_json
from mobileicsa.models.exit_files import CONFIG, MODEL_TYPE

Handler = TypeVar("Handler")
# By config.json's model_type; any other is a decoder's, or refused as one.
MODEL_KINDS = {MODEL_TYPE: EARLY_EXIT}
WORDS = {DECODER: "a language model", EARLY_EXIT: "an early-exit model"}
# Parameters whose flag has another name.
FLAGS = {"overrides": "KEY=VALUE", "inputs": "--input", "targets": "--target"}


def for_artifact(handlers: Mapping[str, Handler], folder: str | Path) -> Handler:
    """The handler for the kind that the folder's manifest says; InputError where a newer version made it."""
    return _chosen(handlers, kind_of(Path(folder)), str(folder))


def for_model(handlers: Mapping[str, Handler], name: str) -> Handler:
    """The handler for a model's folder; any other name is a decoder's."""
    config = Path(name) / CONFIG
    kind = MODEL_KINDS.get(str(read_json(config).get("model_type")), DECODER) if config.is_file() else DECODER
    return _chosen(handlers, kind, name)


def _chosen(handlers: Mapping[str, Handler], kind: str, name: str) -> Handler:
    if kind not in handlers:
        raise InputError(f"{name}: is of kind {kind}, this command takes {', '.join(handlers)}", hint=HINTS.get(kind))
    return handlers[kind]


def refuse(given: Mapping[str, Any], kind: str) -> None:
    """UsageError naming those of the parameters that were given and mean nothing for this kind; False is not given."""
    named = [
        FLAGS.get(name, f"--{name.replace('_', '-')}")
        for name, value in given.items()
        if value is not None and value is not False and value not in ((), [])
    ]
    if named:
        raise UsageError(f"{', '.join(named)}: not for {WORDS[kind]}")
