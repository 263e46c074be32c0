"""What a contender of the speed benchmark is, and the table of those that there are."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from mobileicsa.artifact.generates import LanguageModel
from mobileicsa.core.errors import EnvironmentFault

# Kind -> module:class. Each module imports its runtime late, so that one that is missing hinders no other.
ENGINES = {
    "ours": "benchmarks.speed.ours:Ours",
    "torch": "benchmarks.speed.torch_float:TorchFloat",
    "llama.cpp": "benchmarks.speed.llama_cpp:LlamaCpp",
    "genai": "benchmarks.speed.genai:Genai",
}


class Engine(LanguageModel, Protocol):
    """One loaded model. `evaluate` scores all of them on the same tokens."""

    def start(self, ids: Sequence[int]) -> int:
        """Forget the conversation and feed `ids`; the most likely next token."""
        ...

    def step(self, token: int) -> int:
        """Feed one token; the most likely next one."""
        ...

    def close(self) -> None: ...


def open_engine(kind: str, settings: dict[str, Any]) -> Engine:
    """`settings` are the engine's own; EnvironmentFault where its runtime is not installed."""
    module, _, name = ENGINES[kind].partition(":")
    try:
        made: Engine = getattr(importlib.import_module(module), name)(**settings)
    except ImportError as error:
        raise EnvironmentFault(f"{kind}: {error}", hint="its contenders are left out") from error
    return made


class Fed:
    """The tokens to feed so that a window's are predicted, for engines without a prefix."""

    bos_id: int | None

    def fed(self, ids: Sequence[int]) -> list[int]:
        return [*([] if self.bos_id is None else [self.bos_id]), *ids][:-1]
