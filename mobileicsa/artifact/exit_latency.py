"""How long each stage takes: a session that measures its calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from statistics import median
from typing import Any

from mobileicsa.program.backend import Array, StageSession


class TimedStages:
    """A session whose calls are measured, in milliseconds by stage."""

    def __init__(self, session: StageSession) -> None:
        self.session = session
        self.ms: dict[str, list[float]] = {}

    def run(self, name: str, inputs: Sequence[Array]) -> list[Array]:
        started = time.perf_counter()
        given = self.session.run(name, inputs)
        self.ms.setdefault(name, []).append((time.perf_counter() - started) * 1000)
        return given

    def close(self) -> None:
        self.session.close()

    def latency(self, names: Sequence[str]) -> dict[str, Any]:
        """`stages_ms`: medians; `exits_ms`: up to each exit. Both end before a stage that never ran."""
        medians = []
        for name in names:
            if name not in self.ms:
                break
            medians.append(median(self.ms[name]))
        return {"stages_ms": medians, "exits_ms": list(accumulate(medians))}
