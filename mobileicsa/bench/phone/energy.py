"""Energy per generated token from a power trace: rails or gauge, idle subtracted, or the reason why there is none.

Power rails are measured behind the battery and stay right while the phone charges; the gauge measures what flows in and
out of the battery and then does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from mobileicsa.bench.phone.readings import Battery
from mobileicsa.bench.phone.trace import PowerTrace

# Rails that a model on CPU, GPU or NPU draws from; display, radios, camera and sensors are not ours.
COMPUTE = re.compile(r"CPU|MIF|DDR|MEM|VDD_INT|SLC|G3D|GPU|TPU|NPU|DSP|LLDO|VDD2", re.IGNORECASE)
# Gauges average over a second and report in coarse steps.
MIN_GAUGE_S = 20.0
# A phone that computes draws more than this; smaller readings are another unit (some vendors report mA).
MIN_CURRENT_UA = 20_000

Window = tuple[float, float]


class NoReading(Exception):
    """This source gives no energy, and why."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The energy windows of one turn, and the batteries' state around it."""

    windows: dict[str, Window]
    tokens: int
    batteries: tuple[Battery, Battery]


def energy(trace: PowerTrace | None, turns: Sequence[Measured], refused: str | None) -> dict[str, Any]:
    """`energy_mj_per_token` with its range and source; None, with the reasons, where no source can be trusted."""
    reasons = []
    if trace is None:
        reasons.append(refused or "no power trace")
    else:
        for name, source in SOURCES.items():
            try:
                values = [source(trace, turn) for turn in turns]
            except NoReading as reason:
                reasons.append(f"{name}: {reason}")
                continue
            per_token = [joules * 1000 / turn.tokens for joules, turn in zip(values, turns, strict=True)]
            return {
                "energy_mj_per_token": median(per_token),
                "energy_mj_per_token_range": [min(per_token), max(per_token)],
                "energy_source": f"{name}: {_described(name, trace)}, decode window, idle subtracted",
            }
    return {"energy_mj_per_token": None, "energy_source": f"not measured: {'; '.join(reasons)}"}


def rails_joules(trace: PowerTrace, turn: Measured) -> float:
    """Joules of the decode window above idle, of the compute rails together."""
    names = _compute_rails(trace)
    if not names:
        raise NoReading("the phone has no power rails that Perfetto reads (ODPM: Pixel 6 and later)")

    def of(window: Window) -> float:
        return sum(_consumed(trace.rails[name], window) for name in names) / 1e6

    return _above_idle(turn, of)


def gauge_joules(trace: PowerTrace, turn: Measured) -> float:
    """Joules of the decode window above idle, from mean current and voltage of the battery."""
    chargers = [state.charger for state in turn.batteries if state.charger]
    if chargers:
        raise NoReading(f"charging ({chargers[0]}): unplug it, use adb over Wi-Fi (`dumpsys battery unplug` is a fake)")
    if not all(state.discharging for state in turn.batteries):
        raise NoReading("the battery does not say that it is discharging")
    start, end = turn.windows["decode"]
    if end - start < MIN_GAUGE_S:
        raise NoReading(f"{end - start:.0f} s are too short for it: raise --generate-tokens for {MIN_GAUGE_S:.0f} s")
    if len({value for moment, value in trace.currents if start <= moment <= end}) == 1:
        raise NoReading("the gauge is stuck")
    volts = [state.volts for state in turn.batteries if state.volts]
    if not volts:
        raise NoReading("the battery does not tell its voltage")

    def of(window: Window) -> float:
        return _amperes(trace.currents, window) * fmean(volts) * (window[1] - window[0])

    return _above_idle(turn, of)


SOURCES: dict[str, Callable[[PowerTrace, Measured], float]] = {"odpm": rails_joules, "gauge": gauge_joules}


def _described(name: str, trace: PowerTrace) -> str:
    return f"rails {', '.join(_compute_rails(trace))}" if name == "odpm" else "the whole phone's battery current"


def _compute_rails(trace: PowerTrace) -> list[str]:
    return sorted(name for name in trace.rails if COMPUTE.search(name))


def _above_idle(turn: Measured, joules: Callable[[Window], float]) -> float:
    idle, decode = turn.windows["idle"], turn.windows["decode"]
    net = joules(decode) - joules(idle) / (idle[1] - idle[0]) * (decode[1] - decode[0])
    if net <= 0:
        raise NoReading("it reads no more while the model runs than while the phone idles")
    return net


def _consumed(samples: Sequence[tuple[float, float]], window: Window) -> float:
    """Microjoules of a cumulative counter in a window."""
    start, end = (_at(samples, moment) for moment in window)
    if end < start:
        raise NoReading("a rail's counter runs backwards")
    return end - start


def _at(samples: Sequence[tuple[float, float]], moment: float) -> float:
    """The counter at a moment, between its neighbours."""
    for (before, low), (after, high) in pairwise(samples):
        if before <= moment <= after:
            return low if after == before else low + (high - low) * (moment - before) / (after - before)
    raise NoReading("the trace does not cover the run")


def _amperes(samples: Sequence[tuple[float, float]], window: Window) -> float:
    """Mean discharge current, whatever sign the vendor gives it."""
    values = [value for moment, value in samples if window[0] <= moment <= window[1]]
    if not samples:
        raise NoReading("the phone has no battery gauge that Perfetto reads")
    if min(values, default=0) < 0 < max(values, default=0):
        raise NoReading("the gauge's sign changes while the phone discharges")
    mean = abs(fmean(values)) if values else 0.0
    if mean < MIN_CURRENT_UA:
        raise NoReading(f"{mean:.0f} µA is not what a phone draws: the gauge reports another unit or nothing")
    return mean / 1e6
