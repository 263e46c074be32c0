"""The demo app's headless benchmark: started by `am start`, watched until its JSON is there, read with suspicion.

`android_demo/README.md` describes the protocol; HeadlessActivity is its other end.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileicsa.bench.phone import readings
from mobileicsa.bench.phone.model_files import FORMAT, MODEL_FACTS
from mobileicsa.bench.phone.phone import Phone
from mobileicsa.bench.phone.text import clean, last_line
from mobileicsa.core.errors import DeviceError, InputError
from mobileicsa.io.json_file import read_json

ACTIVITY = "org.mobileicsa.demo.HeadlessActivity"
PACKAGES = {"executorch": "org.mobileicsa.demo.executorch", "onnx": "org.mobileicsa.demo.onnxruntime"}
FLAVOURS = {"executorch": "Executorch", "onnx": "Onnxruntime"}
MAX_RESULT_BYTES = 1 << 20
TURN_TIMEOUT_S = 900.0
POLL_S = 1.0
IDLE_MS = 5000  # quiet time before each run: what the phone draws without us
WINDOWS = ("idle", "prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run: a fresh process loads the model, warms up, idles, then prefills and decodes."""

    backend: str
    folder: str
    run: str
    prompt_tokens: int
    generate_tokens: int
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the app measured. `windows` are (start, end) in seconds of CLOCK_BOOTTIME."""

    load_ms: float
    first_token_ms: float
    step_ms: list[float]
    peak_rss_bytes: int
    rss_before_load_bytes: int
    windows: dict[str, tuple[float, float]]
    runtime: str

    def figures(self) -> dict[str, Any]:
        """As `bench.figures.Runs` takes a turn."""
        names = ("load_ms", "first_token_ms", "step_ms", "peak_rss_bytes")
        return {name: getattr(self, name) for name in names}


def require_app(phone: Phone, backend: str) -> None:
    """DeviceError that says how to get the app, where the phone does not have it."""
    package = PACKAGES[backend]
    if "package:" not in phone.shell(f"pm path {package} 2>&1; true"):
        raise DeviceError(
            f"{phone.serial}: the benchmark app {package} is not on it",
            hint=f"in android_demo run `./gradlew assemble{FLAVOURS[backend]}Release` and give the .apk with --app, or "
            "choose another --backend",
        )


def run_turn(phone: Phone, request: Request, scratch: Path) -> Turn:
    """Start the app, wait for its result, fetch it. The app writes the file whole, so that its presence is enough."""
    package = PACKAGES[request.backend]
    result = f"/sdcard/Android/data/{package}/files/bench-{request.run}.json"
    options = {
        "--es model": f"{request.folder}/{MODEL_FACTS}",
        "--es run": request.run,
        "--ei prompt_tokens": request.prompt_tokens,
        "--ei generate_tokens": request.generate_tokens,
        "--ei threads": request.threads or 0,
        "--ei idle_ms": IDLE_MS,
    }
    extras = " ".join(f"{option} {shlex.quote(str(value))}" for option, value in options.items())
    # -S: the process of the turn before ends first.
    said = phone.shell(f"am start -W -S -n {package}/{ACTIVITY} {extras} 2>&1", timeout_s=90)
    refused = re.search(r"^(Error|Exception|java\.lang\.\w+).*", said, re.MULTILINE)
    if refused:
        raise DeviceError(f"{phone.serial}: am start: {clean(refused[0])}", hint="install the app again with --app")
    peak = _watch(phone, package, result)
    local = scratch / f"{request.run}.json"
    phone.pull(result, local)
    phone.shell(f"rm -f {result}; am force-stop {package}")
    return _read(local, phone.serial, request, peak)


def _watch(phone: Phone, package: str, result: str) -> int:
    """Wait for `result`; returns the peak memory seen meanwhile."""
    script = (
        f'p=$(pidof {package}); echo "pid=$p"; [ -n "$p" ] && grep VmHWM /proc/$p/status; '
        f"[ -f {result} ] && echo finished; true"
    )
    end = phone.clock.now() + TURN_TIMEOUT_S
    pid, peak, missing = 0, 0, 0
    while phone.clock.now() < end:
        answer = phone.shell(script)
        peak = max(peak, readings.peak_bytes(answer) or 0)
        if answer.rstrip().endswith("finished"):
            return peak
        running = re.search(r"^pid=(\d+)", answer)
        pid = int(running[1]) if running else pid
        # One look may fall between the result's renaming and the process's end.
        missing = 0 if running else missing + 1
        if missing > 1:
            raise _died(phone, package, pid)
        phone.clock.sleep(POLL_S)
    phone.shell(f"am force-stop {package}")
    raise DeviceError(
        f"{phone.serial}: the benchmark has no result after {TURN_TIMEOUT_S:.0f} s",
        hint="keep the screen on and unlocked, or ask for fewer tokens",
    )


def _died(phone: Phone, package: str, pid: int) -> DeviceError:
    told = phone.shell(f"dumpsys activity exit-info {package} 2>&1; true")
    reason = readings.exit_reason(told, pid)
    memory = reason is not None and ("LOW_MEMORY" in reason or "SIGNALED" in reason)
    return DeviceError(
        f"{phone.serial}: {package} ended before it had a result: {reason or 'the phone does not say why'}",
        hint="the phone had too little memory: close its apps, or take a smaller model or context"
        if memory
        else f"see `adb logcat` for {package}",
    )


def _read(local: Path, serial: str, request: Request, peak: int) -> Turn:
    """The result file, every value checked: it was written by the phone."""
    try:
        data = read_json(local, max_bytes=MAX_RESULT_BYTES)
    except InputError as error:
        raise DeviceError(f"{serial}: the app's result cannot be read: {last_line(error.message)}") from error
    if isinstance(data.get("error"), str):
        raise DeviceError(
            f"{serial}: the app says: {clean(data['error'])}",
            hint="`avc: denied` or `EACCES`: the phone does not let apps read /data/local/tmp"
            if re.search(r"avc|EACCES|ermission", data["error"])
            else None,
        )
    try:
        if data["format"] != FORMAT or data["run"] != request.run:
            raise ValueError("of another format or run")
        steps = [_positive(step) for step in data["step_ms"]]
        if len(steps) != request.generate_tokens or data["prompt_tokens"] != request.prompt_tokens:
            raise ValueError("not the number of tokens that was asked for")
        windows = {name: _window(data["windows_ns"][name]) for name in WINDOWS}
        return Turn(
            load_ms=_positive(data["load_ms"]),
            first_token_ms=_positive(data["first_token_ms"]),
            step_ms=steps,
            peak_rss_bytes=max(int(_positive(data["peak_rss_bytes"])), peak),
            rss_before_load_bytes=int(_positive(data["rss_before_load_bytes"])),
            windows=windows,
            runtime=clean(str(data["runtime"]), 80),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DeviceError(
            f"{serial}: the app's result is not what was asked for: {clean(f'{type(error).__name__}: {error}')}",
            hint="install the app of this version with --app",
        ) from error


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{clean(str(value), 40)} is not a positive number")
    return float(value)


def _window(value: Any) -> tuple[float, float]:
    start, end = (_positive(moment) / 1e9 for moment in value)
    if end <= start:
        raise ValueError("a window that ends before it starts")
    return start, end
