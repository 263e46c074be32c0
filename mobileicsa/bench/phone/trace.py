"""A Perfetto trace of the phone's power rails and battery gauge: recorded over adb, read without Perfetto's tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mobileicsa.bench.phone.phone import Phone
from mobileicsa.bench.phone.text import clean, last_line
from mobileicsa.core.errors import DeviceError

REMOTE = "/data/misc/perfetto-traces/mobileicsa.pftrace"  # the one place that shell and perfetto share
POLL_MS = 250
MAX_TRACE_BYTES = 64 << 20
CONFIG = f"""
buffers {{ size_kb: 4096 fill_policy: RING_BUFFER }}
data_sources {{ config {{
  name: "android.power"
  android_power_config {{
    battery_poll_ms: {POLL_MS}
    battery_counters: BATTERY_COUNTER_CURRENT
    collect_power_rails: true
  }}
}} }}
write_into_file: true
file_write_period_ms: 2500
max_file_size_bytes: {MAX_TRACE_BYTES}
duration_ms: 7200000
"""
# Field numbers of Perfetto's protos: Trace, TracePacket, PowerRails and BatteryCounters.
PACKET, TIMESTAMP, BATTERY, POWER_RAILS = 1, 8, 38, 40
RAIL_DESCRIPTOR, ENERGY_DATA = 1, 2
CURRENT_UA = 3


@dataclass
class PowerTrace:
    """Times in seconds of CLOCK_BOOTTIME: rails in cumulative microjoules, battery currents in microamperes."""

    rails: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    currents: list[tuple[float, float]] = field(default_factory=list)


class Recording:
    """Recorded on the phone while the `with` block runs; `refused` says why there is none."""

    def __init__(self, phone: Phone) -> None:
        self.phone = phone
        self.refused: str | None = None
        self._pid = 0

    def __enter__(self) -> Recording:
        try:
            said = self.phone.shell(f"rm -f {REMOTE}; perfetto --txt -c - -o {REMOTE} --background 2>&1", given=CONFIG)
        except DeviceError as error:
            self.refused = f"perfetto does not start: {error.message}"
            return self
        # It prints the background process's number, and may print warnings before it.
        last = said.split()[-1] if said.split() else ""
        if last.isdigit():
            self._pid = int(last)
        else:
            self.refused = f"perfetto does not start: {last_line(said) or 'it prints nothing'}"
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pid:
            with suppress(DeviceError):
                self.phone.shell(f"kill {self._pid} 2>/dev/null; rm -f {REMOTE}")

    def stop(self, scratch: Path) -> PowerTrace | None:
        """End the recording and read it; None, with `refused` set, where that fails."""
        if not self._pid:
            return None
        local = scratch / "power.pftrace"
        try:
            # perfetto writes out what it holds before it ends.
            waiting = f"for i in 1 2 3 4 5 6 7 8 9 10; do [ -d /proc/{self._pid} ] || break; sleep 1; done"
            self.phone.shell(f"kill {self._pid}; {waiting}")
            self.phone.pull(REMOTE, local)
            if local.stat().st_size > 2 * MAX_TRACE_BYTES:
                raise DeviceError("the trace is larger than it may be")
            return read_trace(local.read_bytes())
        except (DeviceError, ValueError) as error:
            self.refused = f"the power trace cannot be read: {clean(str(error))}"
            return None


def read_trace(data: bytes) -> PowerTrace:
    """Rails and currents of a trace; ValueError where it is no trace."""
    trace = PowerTrace()
    names: dict[int, str] = {}
    samples: dict[int, list[tuple[float, float]]] = {}
    for number, packet in fields(data):
        if number != PACKET or not isinstance(packet, bytes):
            continue
        inside = dict(fields(packet))  # of each field that we read, a packet has one
        stamp = inside.get(TIMESTAMP, 0)
        rails, battery = inside.get(POWER_RAILS), inside.get(BATTERY)
        if isinstance(rails, bytes):
            _read_rails(rails, stamp if isinstance(stamp, int) else 0, names, samples)
        if isinstance(battery, bytes) and isinstance(stamp, int):
            current = dict(fields(battery)).get(CURRENT_UA)
            if isinstance(current, int):
                trace.currents.append((stamp / 1e9, float(_signed(current))))
    for index, row in samples.items():
        trace.rails[names.get(index, f"rail {index}")] = sorted(row)
    trace.currents.sort()
    return trace


def _read_rails(
    data: bytes, stamp_ns: int, names: dict[int, str], samples: dict[int, list[tuple[float, float]]]
) -> None:
    for number, message in fields(data):
        if not isinstance(message, bytes):
            continue
        inside = dict(fields(message))
        index = inside.get(1, 0)
        if not isinstance(index, int):
            continue
        if number == RAIL_DESCRIPTOR and isinstance(inside.get(2), bytes):
            label = inside.get(2, b"")
            assert isinstance(label, bytes)
            names[index] = clean(label.decode(errors="replace"), 60)
        elif number == ENERGY_DATA:
            moment, energy = inside.get(2, stamp_ns // 1_000_000), inside.get(3)
            if isinstance(moment, int) and isinstance(energy, int):
                samples.setdefault(index, []).append((moment / 1e3, float(energy)))


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protobuf message: an int for varints, bytes for everything of a length."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        else:
            length = {1: 8, 5: 4}.get(kind, -1)
        if length < 0 or position + length > len(data):
            raise ValueError("not a Perfetto trace, or cut off")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("not a Perfetto trace, or cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("not a Perfetto trace: a number without end")


def _signed(value: int) -> int:
    """An int64 from its two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value
