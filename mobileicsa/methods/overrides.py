"""`configure`: a size's config with key=value overrides, each checked against its field's type."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.methods.base import RunConfig
from mobileicsa.methods.result import MAX_SEEDS

# Where data lies when no data=DIR is given.
DATA_VARIABLE = "MOBILEICSA_DATA"
MAX_SEED = 2**31 - 1

Config = TypeVar("Config", bound=RunConfig)


def configure(sizes: Mapping[str, Config], size: str, overrides: Sequence[str]) -> Config:
    """The config of `size` with `overrides`; UsageError (size, key) or InputError (value) that names what is meant."""
    if size not in sizes:
        near = difflib.get_close_matches(size, sizes, n=1)
        raise UsageError(
            f"--size {size}: must be one of {', '.join(sizes)}", hint=f"did you mean {near[0]}?" if near else None
        )
    config = sizes[size]
    hints = get_type_hints(type(config), include_extras=True)
    changes: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UsageError(f"override {override!r}: must be key=value", hint="for example seed=1")
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]}?" if near else f"fields: {', '.join(sorted(hints))}"
            raise UsageError(f"override {override!r}: no field {key!r}", hint=hint)
        if key in changes:
            raise UsageError(f"override {override!r}: {key} is given twice")
        changes[key] = _value(override, text, hints[key])
    if "data" not in changes and config.data is None and os.environ.get(DATA_VARIABLE):
        changes["data"] = Path(os.environ[DATA_VARIABLE])
    changed = dataclasses.replace(config, **changes)
    _check_seeds(changed)
    return changed


def _value(override: str, text: str, hint: Any) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    try:
        if get_origin(hint) is tuple:
            return adapter.validate_python(yaml.safe_load(text))
        return adapter.validate_strings(text)
    except ValidationError as error:
        raise InputError(f"override {override!r}: {error.errors()[0]['msg']}") from error
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r}: not a list such as [1, 2]") from error


def _check_seeds(config: RunConfig) -> None:
    if not 1 <= config.seeds <= MAX_SEEDS:
        raise InputError(f"override seeds={config.seeds}: 1 to {MAX_SEEDS}")
    if not 0 <= config.seed <= MAX_SEED - MAX_SEEDS:
        raise InputError(f"override seed={config.seed}: 0 to {MAX_SEED - MAX_SEEDS}")
