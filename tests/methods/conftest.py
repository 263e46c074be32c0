"""Fixtures of the methods' tests: a toy method in the list, and the command line."""

from __future__ import annotations

import pytest
import toy_method

from mobileicsa.methods.base import METHODS, Entry


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> toy_method.Toy:
    """A fresh toy method, listed as `toy`."""
    method = toy_method.Toy()
    monkeypatch.setattr(toy_method, "METHOD", method)
    entry = Entry(
        name="toy", title="a toy", paper="none", hands_over=("model",), data=(), small_minutes=1, module="toy_method"
    )
    monkeypatch.setitem(METHODS, "toy", entry)
    return method
