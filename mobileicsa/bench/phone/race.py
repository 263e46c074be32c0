"""The turns of a phone bench: run one after the other, kept with the phone's state, turned into rows of figures."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileicsa.bench.contenders import Contender, join_floats
from mobileicsa.bench.estimate import estimate
from mobileicsa.bench.figures import Runs
from mobileicsa.bench.phone.app import Request, Turn, run_turn
from mobileicsa.bench.phone.cooling import Cooling
from mobileicsa.bench.phone.energy import Measured, energy
from mobileicsa.bench.phone.phone import Phone
from mobileicsa.bench.phone.readings import SEVERITY, Battery, Thermal
from mobileicsa.bench.phone.trace import PowerTrace


@dataclass(frozen=True, kw_only=True)
class Lap:
    """One turn of one contender with the phone's state before and after it."""

    turn: Turn
    thermal: tuple[Thermal, Thermal]
    batteries: tuple[Battery, Battery]

    @property
    def throttled(self) -> bool:
        return any(state.status for state in self.thermal)

    def facts(self) -> dict[str, Any]:
        before, after = self.thermal
        return {
            "throttled": self.throttled,
            "thermal_status": [None if s.status is None else SEVERITY[s.status] for s in self.thermal],
            "skin_c": [before.skin_c, after.skin_c],
            "battery_c": [state.celsius for state in self.batteries],
        }


@dataclass
class Race:
    """What has been measured so far, contender by contender; a turn counts where all of them have it."""

    laps: dict[str, list[Lap]] = field(default_factory=dict)

    def whole_turns(self) -> int:
        return min((len(row) for row in self.laps.values()), default=0)

    def good_turns(self) -> list[int]:
        """Turns in which no contender was throttled: only these are compared."""
        return [i for i in range(self.whole_turns()) if not any(row[i].throttled for row in self.laps.values())]


def run_laps(
    phone: Phone,
    contenders: Sequence[Contender],
    remotes: dict[str, str],
    race: Race,
    common: dict[str, Any],
    scratch: Path,
    step: Callable[[str, int], Callable[[], None]],
) -> None:
    """`repeat` turns of every contender, A B A B; each is kept in `race` as soon as it is measured."""
    tick = step("bench", len(contenders) * common["repeat"])
    cooling = Cooling(phone)
    for _ in range(common["repeat"]):
        for contender in contenders:
            before = cooling.wait(), phone.battery()
            turn = run_turn(
                phone,
                Request(
                    backend=contender.backend,
                    folder=remotes[contender.name],
                    run=secrets.token_hex(6),
                    prompt_tokens=common["prompt_tokens"],
                    generate_tokens=common["generate_tokens"],
                    threads=common["threads"],
                ),
                scratch,
            )
            thermal, battery = phone.thermal(), phone.battery()
            cooling.check(thermal)
            race.laps[contender.name].append(
                Lap(turn=turn, thermal=(before[0], thermal), batteries=(before[1], battery))
            )
            tick()


def rows_of(
    contenders: Sequence[Contender],
    race: Race,
    trace: PowerTrace | None,
    refused: str | None,
    macs: int,
    common: dict[str, Any],
) -> dict[str, Any]:
    """A row of figures for each contender, from the turns in which none was throttled.

    `refused` says why there is no trace, `macs` are those of a decode step.
    """
    good = race.good_turns()
    rows: dict[str, Any] = {}
    runs: dict[str, Runs] = {}
    for contender in contenders:
        laps = [race.laps[contender.name][i] for i in good]
        turns = [lap.turn for lap in laps]
        runs[contender.name] = Runs(
            opened={"first_load_ms": turns[0].load_ms, "rss_before_load_bytes": turns[0].rss_before_load_bytes},
            prompt_tokens=common["prompt_tokens"],
            turns=[turn.figures() for turn in turns],
            loads=[turn.load_ms for turn in turns],
        )
        measured = [
            Measured(windows=lap.turn.windows, tokens=common["generate_tokens"], batteries=lap.batteries)
            for lap in laps
        ]
        row = runs[contender.name].summary() | contender.facts() | energy(trace, measured, refused)
        row["energy_estimate"] = estimate(row["bytes_per_token"], macs, contender.dtype)
        row["runtime"] = turns[0].runtime
        row["laps"] = [lap.facts() for lap in race.laps[contender.name]]
        row["throttled_turns"] = race.whole_turns() - len(good)
        rows[contender.name] = row
    join_floats(rows, contenders, runs)
    return rows


def worst_status(race: Race) -> str:
    """The severest throttling seen."""
    levels = [s.status or 0 for row in race.laps.values() for lap in row for s in lap.thermal]
    return SEVERITY[max(levels, default=0)]
