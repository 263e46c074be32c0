"""Strict, bounded JSON: everything a hostile or broken file can do ends in an `InputError` naming the place."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from mobileicsa.core.errors import InputError
from mobileicsa.io.atomic import write_bytes

MAX_BYTES = 4 << 20
MAX_DEPTH = 64

# Strings are skipped whole (possessive, so a hostile file cannot cause backtracking); brackets are counted.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)

_FOREIGN_STARTS = (
    (b"\xef\xbb\xbf", "a UTF-8 byte order mark"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The object in a JSON file (UTF-8, no BOM, no NaN, no duplicate keys)."""
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found", hint="check that the folder is complete") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise InputError(f"{path}: larger than {max_bytes} bytes, which no such file needs")
    return parse_json(data, str(path), max_depth=max_depth)


def parse_json(data: bytes, where: str, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The object in `data`; `where` names the source in messages."""
    text = _decode(data, where)
    _check_depth(data, where, max_depth)

    def constant(name: str) -> NoReturn:
        raise InputError(f"{where}: {name} is not a JSON number{_position(data, name.encode())}")

    def number(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            raise InputError(f"{where}: number {literal[:40]} is out of range{_position(data, literal.encode())}")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise InputError(f"{where}: key {key[:100]!r} occurs twice in one object")
            result[key] = value
        return result

    try:
        value = json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        raise InputError(f"{where}: not valid JSON at byte {byte}: {error.msg}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{where}: not valid JSON: {error}") from error
    if b"\\u" in data and (half := re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))):
        raise InputError(f"{where}: text holds half a character ({half[0]!r}), which cannot be written as UTF-8")
    if not isinstance(value, dict):
        raise InputError(f"{where}: holds a {type(value).__name__}, not an object")
    return value


def dump_json(value: Any) -> bytes:
    """The one way we write JSON: same value, same bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically, keys sorted."""
    write_bytes(path, dump_json(value))


def _decode(data: bytes, where: str) -> str:
    if not data.strip():
        raise InputError(f"{where}: is empty")
    for start, name in _FOREIGN_STARTS:
        if data.startswith(start):
            raise InputError(f"{where}: starts with {name} at byte 0", hint="save it as plain UTF-8")
    if (zero := data.find(b"\0")) >= 0:
        raise InputError(f"{where}: NUL at byte {zero}; UTF-16 or not text", hint="save it as plain UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}", hint="save it as plain UTF-8") from error


def _check_depth(data: bytes, where: str, max_depth: int) -> None:
    """Count brackets before the recursive parser sees them."""
    depth = 0
    for match in _STRUCTURE.finditer(data):
        mark = match[0][:1]
        if mark in b"[{":
            depth += 1
            if depth > max_depth:
                raise InputError(f"{where}: nested deeper than {max_depth} at byte {match.start()}")
        elif mark in b"]}":
            depth -= 1


def _position(data: bytes, token: bytes) -> str:
    position = data.find(token)
    return f" at byte {position}" if position >= 0 else ""
