"""The processor's own energy counters on a Linux host (RAPL), where they are readable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

POWERCAP = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")  # AMD's counters bear this name too; sub-zones (…:0:0) are inside a package
IDLE_S = 1.0
ABSENT = "not measured: this machine has no RAPL counters (no /sys/class/powercap/intel-rapl:*)"
UNREADABLE = "not measured: RAPL counters are for root only (energy_uj cannot be read)"
RUNS = "not measured: the counters read no more while the model ran than before"


class Counters:
    """Microjoules of every processor package since the start of this object."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        zones = sorted(zone for zone in folder.glob("intel-rapl:*") if PACKAGE.fullmatch(zone.name))
        self.refused: str | None = None if zones else ABSENT
        self._files = [zone / "energy_uj" for zone in zones]
        self._last: list[int] = []
        self._total = 0
        try:
            self._wraps = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
            self._last = self._raw()
        except (OSError, ValueError):
            self.refused = UNREADABLE

    def read(self) -> int | None:
        """The sum over packages; counters that went round are counted on. None where there are none."""
        if self.refused:
            return None
        now = self._raw()
        for before, after, wrap in zip(self._last, now, self._wraps, strict=True):
            self._total += after - before if after >= before else after + wrap - before
        self._last = now
        return self._total

    def _raw(self) -> list[int]:
        return [int(path.read_text()) for path in self._files]


def energy(opened: dict[str, Any], turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Millijoules a generated token above the idle power that a worker saw before it loaded the model.

    `opened` has rapl_refused and idle_watts, each turn decode_joules and step_ms.
    """
    if opened["rapl_refused"]:
        return {"energy_mj_per_token": None, "energy_source": opened["rapl_refused"]}
    values = [
        (turn["decode_joules"] - opened["idle_watts"] * sum(turn["step_ms"]) / 1000) / len(turn["step_ms"]) * 1000
        for turn in turns
    ]
    if min(values) <= 0:
        return {"energy_mj_per_token": None, "energy_source": RUNS}
    return {
        "energy_mj_per_token": median(values),
        "energy_mj_per_token_range": [min(values), max(values)],
        "energy_source": "rapl: all processor packages, whatever else runs included, idle subtracted",
    }
