"""Readers of what Android's tools print. Each takes the text and returns plain values; None where it does not say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mobileicsa.bench.phone.text import clean

# android.os.Temperature types and throttling severities.
SKIN = 3
SEVERITY = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
CHARGERS = ("AC", "USB", "Wireless", "Dock")
DISCHARGING = 3  # BatteryManager.BATTERY_STATUS_DISCHARGING


@dataclass(frozen=True)
class Listed:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    model: str | None


def devices(text: str) -> list[Listed]:
    """Those of `adb devices -l`; the server's own messages (`* daemon …`) are passed over."""
    found = []
    _, _, below = text.partition("List of devices attached")
    for line in below.splitlines():
        parts = line.split(None, 1)
        if len(parts) != 2 or line.startswith("*"):
            continue
        # "no permissions (user in plugdev group; …)" is the only state of more than one word.
        state = "no permissions" if parts[1].startswith("no permissions") else parts[1].split()[0]
        model = re.search(r"\bmodel:(\S+)", parts[1])
        found.append(Listed(clean(parts[0], 80), clean(state, 40), clean(model[1], 80) if model else None))
    return found


@dataclass(frozen=True)
class Thermal:
    """Throttling severity (index of SEVERITY) and the warmest skin sensor in degrees Celsius."""

    status: int | None
    skin_c: float | None


def thermal(text: str) -> Thermal:
    """`dumpsys thermalservice`; current temperatures are preferred to cached ones."""
    status = re.search(r"^\s*Thermal Status:\s*(\d+)", text, re.MULTILINE)
    current = text.partition("Current temperatures from HAL")[2].partition("Current cooling")[0] or text
    warm = [
        float(value)
        for value, kind in re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=(-?\d+),", current)
        if int(kind) == SKIN
    ]
    level = int(status[1]) if status else None
    return Thermal(level if level is None or level < len(SEVERITY) else len(SEVERITY) - 1, max(warm, default=None))


@dataclass(frozen=True)
class Battery:
    """`charger`: what feeds the phone, None on battery; volts, degrees Celsius, percent as `dumpsys battery` says."""

    charger: str | None
    discharging: bool
    volts: float | None
    celsius: float | None
    percent: int | None


def battery(text: str) -> Battery:
    fields = dict(re.findall(r"^\s*([A-Za-z][\w ]*): *(\S+)\s*$", text, re.MULTILINE))
    numbers = {name: int(value) for name, value in fields.items() if re.fullmatch(r"-?\d{1,9}", value)}
    feeding = [name for name in CHARGERS if fields.get(f"{name} powered") == "true"]
    millivolts, tenths = numbers.get("voltage"), numbers.get("temperature")
    return Battery(
        charger=" and ".join(feeding) or None,
        discharging=numbers.get("status") == DISCHARGING,
        volts=None if millivolts is None else millivolts / 1000,
        celsius=None if tenths is None else tenths / 10,
        percent=numbers.get("level"),
    )


def free_bytes(text: str) -> int | None:
    """The fourth column of `df -k`'s last line."""
    lines = text.strip().splitlines()
    fields = lines[-1].split() if len(lines) > 1 else []
    return int(fields[3]) * 1024 if len(fields) >= 6 and fields[3].isdigit() else None


def peak_bytes(text: str) -> int | None:
    """VmHWM of /proc/PID/status."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def exit_reason(text: str, pid: int) -> str | None:
    """Why process `pid` died, from `dumpsys activity exit-info PACKAGE`."""
    for record in re.split(r"ApplicationExitInfo #\d+:", text)[1:]:
        if not re.search(rf"\bpid={pid}\b", record):
            continue
        reason = re.search(r"\breason=(\d+ \([^)\n]*\))", record)
        told = re.search(r"\bdescription=(.*?)(?: state=|\n|$)", record)
        words = [reason[1] if reason else "", told[1] if told and told[1] != "null" else ""]
        return clean(", ".join(word for word in words if word)) or None
    return None
