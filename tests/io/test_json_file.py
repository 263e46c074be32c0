"""Strict JSON: what the standard parser reads alike is read alike, what it lets through wrongly is refused."""

from __future__ import annotations

import contextlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileicsa.core.errors import InputError
from mobileicsa.io.json_file import dump_json, parse_json, read_json, write_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), VALUES))
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    assert parse_json(dump_json(value), "test") == value


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_an_input_error(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_json(data, "test"), dict)


def test_random_damage_never_gives_another_error_or_another_value() -> None:
    whole = dump_json({"a": [1, 2.5, {"b": 'text \\ " é'}], "c": None, "d": {"e": [[], {}]}})
    damage = random.Random(0)
    for _ in range(2000):
        data = bytearray(whole)
        data[damage.randrange(len(data))] = damage.randrange(256)
        try:
            value = parse_json(bytes(data), "test")
        except InputError:
            continue
        assert value == json.loads(data)


def test_depth_is_allowed_up_to_the_limit_exactly() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    parse_json(nested(5), "test", max_depth=5)
    with pytest.raises(InputError, match="nested deeper than 5 at byte 25"):
        parse_json(nested(6), "test", max_depth=5)


def test_brackets_inside_text_do_not_count_as_nesting() -> None:
    assert parse_json(b'{"a": "' + b"[" * 1000 + b'\\"["}', "test", max_depth=2)["a"].endswith('"[')


def test_size_is_allowed_up_to_the_limit_exactly(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, max_bytes=8) == {"a": 1}
    with pytest.raises(InputError, match="larger than 7 bytes"):
        read_json(path, max_bytes=7)


def test_the_same_value_gives_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": {"b": 1, "a": 2}})
    write_json(tmp_path / "b", {"y": {"a": 2, "b": 1}, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x", {"x": math.nan})
    assert not (tmp_path / "x").exists()
