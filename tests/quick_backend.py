"""A back end that takes a fraction of a second, for tests of everything around a real one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from mobileicsa import api
from mobileicsa.artifact import golden, plan_build
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program import backend
from mobileicsa.program.backend import Written

TARGET = Target(name="quick", description="for tests", backends=("quick",), context=64, prefill_chunk=16)
CHUNKS, PAUSE_S = 20, 0.005


class QuickBackend:
    """Writes the decoder's tensors, in pieces and with pauses, so that a kill may come in between."""

    name = "quick"

    def unavailable(self) -> str | None:
        return None

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        folder.mkdir(parents=True, exist_ok=True)
        data = save({name: tensor.contiguous().clone() for name, tensor in decoder.state_dict().items()})
        size = -(-len(data) // CHUNKS)
        with (folder / "model.quick").open("wb") as file:
            for start in range(0, len(data), size):
                file.write(data[start : start + size])
                file.flush()
                time.sleep(PAUSE_S)
        return Written(files=(folder / "model.quick",), facts={"ops": {}})

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        return {"integer": 0, "float": 0, "boundary": 0, "outside": 0, "by_op": {}, "products": {}, "fallbacks": []}


class _Point:
    name = "quick"

    def load(self) -> type[QuickBackend]:
        return QuickBackend


@contextmanager
def quick_backend() -> Iterator[None]:
    """Only the quick back end and its target exist; few golden texts, and no drawings on the report's page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "PROMPTS", golden.PROMPTS[:2])
        patch.setattr(golden, "GREEDY_TOKENS", 2)
        patch.setattr(api, "write_report", lambda folder: None)
        patch.setattr(backend, "entry_points", lambda group: [_Point()])
        patch.setattr(plan_build, "find_target", lambda name: TARGET)
        yield
