"""A phone for the bench's tests: a scripted `adb` first on PATH, and a clock that does not wait."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import phone_outputs as said
import pytest

from mobileicsa.bench.phone.clock import Clock

FAKE = Path(__file__).with_name("fake_adb.py")


class FakeClock(Clock):
    """Sleeping costs no time, it only moves the hands."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class FakePhone:
    """Write `scenario`'s keys before the code under test calls adb; `clock` is for its Phone."""

    folder: Path
    clock: FakeClock
    scenario: dict[str, Any]

    def set(self, **changes: Any) -> FakePhone:
        answers = {**self.scenario["answers"], **changes.pop("answers", {})}
        self.scenario |= {**changes, "answers": answers}
        (self.folder / "scenario.json").write_text(json.dumps(self.scenario))
        return self

    @property
    def calls(self) -> list[list[str]]:
        log = self.folder / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []

    @property
    def files(self) -> list[str]:
        disk = self.folder / "disk"
        return sorted(path.relative_to(disk).as_posix() for path in disk.rglob("*") if path.is_file())


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    """A cool Pixel 8 on battery with both apps, power rails and perfetto."""
    folder = tmp_path / "fake-phone"
    (folder / "disk").mkdir(parents=True)
    (folder / "bin").mkdir()
    program = folder / "bin" / "adb"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{FAKE}" "{folder}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")
    made = FakePhone(folder, FakeClock(), {"answers": {}})
    return made.set(
        devices=[said.STARTING + said.devices(said.DEVICE)],
        faults=[],
        answers={
            "boot_id": "0b1f3a52-77aa-4a3f-9d55-000000000001\n",
            "getprop": "Google\nPixel 8\nTensor G3\nzuma\n15\n35\narm64-v8a\n",
            "dumpsys battery": said.battery(),
            "dumpsys thermalservice": said.thermal(),
            "pm path": "package:/data/app/~~Zx==/org.mobileicsa.demo-1/base.apk\n",
            "df -k": said.DF,
        },
        slowness={"onnx": 2.0},
        step_s=0.5,
        dies=0,
        result={},
        raw_result=None,
        perfetto=True,
        rails={"S4M_VDD_CPUCL0": [0.1, 1.1], "S1M_VDD_MIF": [0.05, 0.35], "PPVAR_VSYS_PWR_DISP": [1.0, 1.0]},
        gauge=None,
    )
