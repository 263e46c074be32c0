"""Finds the phone: none, several, one that is not ready; each answer within ten seconds and with what to do."""

from __future__ import annotations

from mobileicsa.bench.phone.adb import Adb
from mobileicsa.bench.phone.clock import Clock
from mobileicsa.bench.phone.readings import Listed, devices
from mobileicsa.bench.phone.text import clean
from mobileicsa.core.errors import DeviceError

LIST_TIMEOUT_S = 6.0
PATIENCE_S = 3.0  # for a state that passes by itself; with the listing's time-out within ten seconds
POLL_S = 0.5
READY = "device"
# What to do about each state; those of PASSING may end by themselves.
PASSING = ("offline", "authorizing", "connecting", "bootloader")
REMEDIES = {
    "unauthorized": "unlock the phone and allow USB debugging for this computer",
    "authorizing": "unlock the phone and allow USB debugging for this computer",
    "offline": "unplug the phone, run `adb kill-server`, plug it in again",
    "connecting": "unplug the phone, run `adb kill-server`, plug it in again",
    "no permissions": "give this user access to the USB device (Debian: apt install android-sdk-platform-tools-common)",
    "bootloader": "start Android: `fastboot reboot`",
    "recovery": "start Android: `adb reboot`",
    "sideload": "start Android: `adb reboot`",
}
NO_PHONE = "switch on USB debugging in the phone's developer options and plug it in, or `adb connect` it over Wi-Fi"


def find_phone(serial: str | None, clock: Clock) -> Listed:
    """The phone `serial`, or the only one there is. Raises DeviceError with the one action to take."""
    adb = Adb()
    end = clock.now() + PATIENCE_S
    while True:
        answer = adb.run("devices", "-l", timeout_s=LIST_TIMEOUT_S)
        if answer.code:
            raise DeviceError(f"adb devices: {answer.said}", hint="run `adb kill-server`, then try again")
        found = _choose(devices(answer.out), serial)
        if found.state == READY:
            return found
        if found.state not in PASSING or clock.now() >= end:
            raise DeviceError(
                f"{found.serial}: {found.state}", hint=REMEDIES.get(found.state, "see `adb devices`, plug it in again")
            )
        clock.sleep(POLL_S)


def _choose(listed: list[Listed], serial: str | None) -> Listed:
    if not listed:
        raise DeviceError("adb: no phone is connected", hint=NO_PHONE)
    names = ", ".join(f"{row.serial} ({row.model or row.state})" for row in listed)
    if serial is None:
        if len(listed) > 1:
            raise DeviceError(f"adb: {len(listed)} devices: {clean(names)}", hint="choose: --device adb:SERIAL")
        return listed[0]
    chosen = [row for row in listed if row.serial == serial]
    if not chosen:
        raise DeviceError(f"adb: no device {clean(serial, 80)}; there are {clean(names)}", hint="see `adb devices`")
    return chosen[0]
