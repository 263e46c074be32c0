"""`ConfigReader`: typed, bounded fields of a config.json; every complaint names file, field and value."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from mobileicsa.core.errors import InputError

T = TypeVar("T")

# Upper limits are an order of magnitude above the largest published decoder: a larger number is a broken
# or hostile file, and must be refused before anything of that size is allocated.
MAX_VOCAB = 1_000_000
MAX_HIDDEN = 65_536
MAX_INNER = 1_048_576
MAX_LAYERS = 1_000
MAX_HEADS = 4_096
MAX_HEAD_DIM = 4_096
MAX_CONTEXT = 100_000_000


class ConfigReader:
    """Reads one JSON object. A field that is absent or null takes its default; without a default it is an error.

    `path` is the dotted place of the object inside the file, for messages.
    """

    def __init__(self, config: Mapping[str, Any], where: str, path: str = "") -> None:
        self.config = config
        self.where = where
        self.path = path

    def error(self, field: str, expected: str, *, hint: str | None = None) -> InputError:
        value = repr(self.config.get(field))
        shown = value if len(value) <= 80 else value[:77] + "..."
        return InputError(f"{self.where}: {self.path}{field} is {shown}; expected {expected}", hint=hint)

    def value(self, field: str) -> Any:
        return self.config.get(field)

    def has(self, field: str) -> bool:
        """Whether the field is written at all, be it as null."""
        return field in self.config

    def integer(self, field: str, maximum: int, default: int | None = None, *, minimum: int = 1) -> int:
        value = self.config.get(field)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(field, f"an integer from {minimum} to {maximum}")
        return value

    def number(
        self, field: str, default: float | None = None, *, above: float = 0.0, maximum: float = math.inf
    ) -> float:
        value = self.config.get(field)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(field, "a number")
        # An integer of JSON may be more than any float.
        if not above < value <= min(maximum, sys.float_info.max):
            limit = "" if maximum == math.inf else f" and at most {maximum:g}"
            raise self.error(field, f"a finite number above {above:g}{limit}")
        return float(value)

    def optional_number(self, field: str, default: float | None) -> float | None:
        """A positive number; null means none, absence means `default`."""
        if not self.has(field):
            return default
        return None if self.config[field] is None else self.number(field)

    def flag(self, field: str, default: bool) -> bool:
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(field, "true or false")
        return value

    def choice(self, field: str, table: Mapping[str, T], default: str) -> T:
        value = self.config.get(field)
        key = default if value is None else value
        if not isinstance(key, str) or key not in table:
            raise self.error(field, "one of " + ", ".join(sorted(table)))
        return table[key]

    def items(self, field: str, kind: type[T] | tuple[type[T], ...], length: int) -> list[T] | None:
        """A list of at least `length` items of that kind, cut to it; None where absent."""
        value = self.config.get(field)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length or not all(isinstance(v, kind) for v in value[:length]):
            raise self.error(field, f"a list of {length} items")
        return value[:length]

    def section(self, field: str) -> ConfigReader | None:
        """The nested object of that name; None where absent, null or empty."""
        value = self.config.get(field)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.error(field, "an object")
        return ConfigReader(value, self.where, f"{self.path}{field}.")

    def without(self, field: str) -> ConfigReader:
        """The same object as if the field were absent."""
        return ConfigReader({k: v for k, v in self.config.items() if k != field}, self.where, self.path)

    def refuse(self, field: str, why: str) -> None:
        """Raise when a field that this family would ignore asks for something."""
        if self.config.get(field):
            raise self.error(field, f"it absent, null or false: {why}")
