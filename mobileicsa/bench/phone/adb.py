"""One call of the `adb` program: a time-out, a cap on what it prints, and errors with a name."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from mobileicsa.bench.phone.text import last_line
from mobileicsa.core.errors import DeviceError

MAX_OUTPUT_BYTES = 4 << 20
# How adb says that it has no phone at the other end any more. Each may come back with the cable.
LOST = (
    "not found",
    "no devices/emulators",
    "device offline",
    "device unauthorized",
    "still authorizing",
    "error: closed",
    "protocol fault",
    "connection reset",
    "cannot connect to daemon",
    "couldn't read from device",
    "failed to read copy response",
)
# `adb shell` ends so, without a word, when the cable is pulled while it runs.
LOST_CODE = 255


class Disconnected(DeviceError):
    """The connection to the phone is gone; it may come back."""


@dataclass(frozen=True)
class Output:
    """What one call left. `out` and `err` are the phone's own words: `text.clean` them before they are shown."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The line that tells what went wrong, fit to be shown."""
        return last_line(self.err) or last_line(self.out) or f"exit code {self.code}"


class Adb:
    """Runs `adb`, for the phone `serial` where one is named."""

    def __init__(self, serial: str | None = None) -> None:
        self.serial = serial
        program = shutil.which("adb")
        if program is None:
            raise DeviceError(
                "adb: not found", hint="install Android's platform tools (Debian: apt install adb) and put adb on PATH"
            )
        self._program = program

    def run(self, *arguments: str, timeout_s: float, given: str = "") -> Output:
        """Run `adb arguments…` with `given` on standard input.

        Raises Disconnected where the phone or the server is gone, DeviceError after `timeout_s` seconds or more than
        MAX_OUTPUT_BYTES. Any other exit code is the caller's to judge.
        """
        target = () if self.serial is None else ("-s", self.serial)
        command = [self._program, *target, *arguments]
        what = f"adb {arguments[0]}"
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            try:
                out, err = _communicate(process, given.encode(), what, timeout_s)
                code = process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                raise DeviceError(f"{what}: does not end", hint="run `adb kill-server`, then try again") from None
            finally:
                process.kill()
        output = Output(code, out.decode(errors="replace"), err.decode(errors="replace"))
        if code and _is_lost(arguments[0], output):
            raise Disconnected(
                f"{self.serial or 'phone'}: connection lost during {what}: {output.said}",
                hint="check the cable, unlock the phone, and see `adb devices`",
            )
        return output


def _is_lost(verb: str, output: Output) -> bool:
    # adb 29 tells what went wrong with a push or pull on standard output, which is the phone's own for a shell.
    told = output.err.splitlines() + ([] if verb == "shell" else output.out.splitlines())
    lines = [line.lower() for line in told if line.lower().startswith(("adb:", "error:"))]
    if any(words in line for line in lines for words in LOST):
        return True
    return output.code == LOST_CODE and not output.err.strip()


def _communicate(process: subprocess.Popen[bytes], given: bytes, what: str, timeout_s: float) -> tuple[bytes, bytes]:
    """Standard output and error, read side by side until both end."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    end = time.monotonic() + timeout_s
    got: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    try:
        process.stdin.write(given)
        process.stdin.close()
    except BrokenPipeError:
        pass
    with selectors.DefaultSelector() as selector:
        for stream in got:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(end - time.monotonic(), 0))
            if not ready and time.monotonic() >= end:
                raise DeviceError(
                    f"{what}: no answer within {timeout_s:.0f} s",
                    hint="unlock the phone; if that does not help, run `adb kill-server` and plug it in again",
                )
            for key, _ in ready:
                stream = key.fileobj
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(stream)
                    continue
                got[stream] += piece
                if sum(map(len, got.values())) > MAX_OUTPUT_BYTES:
                    raise DeviceError(f"{what}: printed more than {MAX_OUTPUT_BYTES >> 20} MiB")
    return bytes(got[process.stdout]), bytes(got[process.stderr])
