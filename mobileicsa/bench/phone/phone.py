"""A phone behind adb: shell, checked pushes, pulls, temperatures, each repeated where the connection slips."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mobileicsa.bench.phone import readings
from mobileicsa.bench.phone.adb import Adb, Disconnected, Output
from mobileicsa.bench.phone.clock import Clock
from mobileicsa.bench.phone.connect import find_phone
from mobileicsa.bench.phone.text import clean
from mobileicsa.core.errors import DeviceError
from mobileicsa.io.hashing import sha256_file

SHELL_TIMEOUT_S = 30.0
INSTALL_TIMEOUT_S = 300.0
SLOWEST_BYTES_PER_S = 1 << 20  # a bad USB 2 cable
PAUSES_S = (1.0, 2.0, 4.0)  # before each of three retries
WORK = "/data/local/tmp/mobileicsa"  # every file of ours on the phone lies below it
PROPERTIES = {
    "manufacturer": "ro.product.manufacturer",
    "model": "ro.product.model",
    "chip": "ro.soc.model",
    "board": "ro.board.platform",
    "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "abis": "ro.product.cpu.abilist",
}
ABIS = ("arm64-v8a", "x86_64")  # what the runtimes' Android packages hold
# Device messages of a full disk, a forbidden place and such; shown as they are, with what to do.
REMEDIES = (
    ("no space left", "free some storage on the phone"),
    ("insufficient_storage", "free some storage on the phone"),
    ("read-only file system", f"the phone does not let adb write below {WORK}"),
    ("permission denied", f"the phone does not let adb write below {WORK}"),
    ("no_matching_abis", "build the app for this phone's processor"),
)

T = TypeVar("T")


class Phone:
    """`clock` is the tests' to replace."""

    def __init__(self, serial: str | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.serial = find_phone(serial, self.clock).serial
        self.adb = Adb(self.serial)
        self._boot = self._boot_id()
        self.properties = self._properties()
        abis = (self.properties["abis"] or "").split(",")
        if not set(abis) & set(ABIS):
            raise DeviceError(
                f"{self.serial}: its processor runs {clean(', '.join(abis)) or 'nothing known'}",
                hint=f"the runtimes' Android packages exist for {' and '.join(ABIS)} only",
            )

    def shell(self, script: str, *, timeout_s: float = SHELL_TIMEOUT_S, given: str = "") -> str:
        """What a shell script prints; DeviceError with the phone's message where it fails."""
        return self.retrying(lambda: self._once(script, timeout_s, given))

    def _once(self, script: str, timeout_s: float, given: str) -> str:
        output = self.adb.run("shell", script, timeout_s=timeout_s, given=given)
        if output.code:
            raise self._failed(script.split()[0], output)
        return output.out

    def retrying(self, act: Callable[[], T]) -> T:
        """`act` again after each lost connection, three times at most, on the same phone since the same start."""
        for pause in PAUSES_S:
            try:
                return act()
            except Disconnected:
                self.clock.sleep(pause)
                self._reconnect()
        return act()

    def _reconnect(self) -> None:
        try:
            find_phone(self.serial, self.clock)
            boot = self._boot_id()
        except DeviceError:  # the next try says so itself
            return
        if boot != self._boot:
            raise DeviceError(f"{self.serial}: the phone restarted", hint="let it finish starting, then try again")

    def _boot_id(self) -> str:
        return self.adb.run("shell", "cat /proc/sys/kernel/random/boot_id", timeout_s=SHELL_TIMEOUT_S).out.strip()

    def _properties(self) -> dict[str, str | None]:
        script = "; ".join(f"getprop {name}" for name in PROPERTIES.values())
        lines = [*self.shell(script).splitlines(), *[""] * len(PROPERTIES)]
        return {name: clean(line.strip(), 80) or None for name, line in zip(PROPERTIES, lines, strict=False)}

    def push(self, local: Path, remote: str) -> None:
        """Copy a file and compare its SHA-256; a file that is there already is not sent again."""
        wanted = sha256_file(local)
        if self._sha256(remote) == wanted:
            return
        timeout_s = 60 + local.stat().st_size / SLOWEST_BYTES_PER_S
        output = self.retrying(lambda: self.adb.run("push", str(local), remote, timeout_s=timeout_s))
        if output.code:
            raise self._failed(f"push {local.name}", output)
        # Private files stay private when they are pushed; the app runs as another user.
        if self._sha256(remote, f"chmod 644 {shlex.quote(remote)} && ") != wanted:
            raise DeviceError(f"{self.serial}: {local.name} arrived damaged", hint="try another cable")

    def pull(self, remote: str, local: Path) -> None:
        output = self.retrying(lambda: self.adb.run("pull", remote, str(local), timeout_s=SHELL_TIMEOUT_S * 4))
        if output.code or not local.is_file():
            raise self._failed(f"pull {remote}", output)

    def install(self, apk: Path) -> None:
        output = self.retrying(lambda: self.adb.run("install", "-r", str(apk), timeout_s=INSTALL_TIMEOUT_S))
        if output.code or "Failure [" in output.out + output.err:
            raise self._failed(f"install {apk.name}", output)

    def make_folder(self, remote: str, needed_bytes: int) -> None:
        """A folder of ours, on a file system with room for `needed_bytes`."""
        self.shell(f"mkdir -p {shlex.quote(remote)} && chmod 755 {WORK} {shlex.quote(remote)}")
        free = readings.free_bytes(self.shell(f"df -k {shlex.quote(remote)}"))
        if free is not None and free < needed_bytes:
            raise DeviceError(
                f"{self.serial}: {needed_bytes >> 20} MiB do not fit the {free >> 20} MiB that are free on it",
                hint="free some storage on the phone",
            )

    def remove(self, remote: str, names: list[str]) -> None:
        """Delete these files of a folder of ours, and the folder where nothing else is in it."""
        assert remote.startswith(WORK + "/")
        files = " ".join(shlex.quote(f"{remote}/{name}") for name in names)
        self.shell(f"rm -f {files}; rmdir {shlex.quote(remote)} {WORK} 2>/dev/null; true")

    def thermal(self) -> readings.Thermal:
        return readings.thermal(self._reading("dumpsys thermalservice"))

    def battery(self) -> readings.Battery:
        return readings.battery(self._reading("dumpsys battery"))

    def _reading(self, script: str) -> str:
        """A phone without the service says so with an exit code or in words: nothing is read then."""
        return self.shell(f"{script} 2>&1; true")

    def _sha256(self, remote: str, first: str = "") -> str | None:
        found = re.match(r"([0-9a-f]{64})\s", self.shell(f"{first}sha256sum {shlex.quote(remote)} 2>/dev/null; true"))
        return found[1] if found else None

    def _failed(self, what: str, output: Output) -> DeviceError:
        hint = next((remedy for words, remedy in REMEDIES if words in output.said.lower()), None)
        return DeviceError(f"{self.serial}: {clean(what, 80)}: {output.said}", hint=hint)
