"""Group G of the torture list (68 to 72): the phone that is not there, goes away, is full, hot, charging or hostile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import phone_outputs as said
import pytest
from fake_phone import FakePhone

from mobileicsa.bench.phone import app, connect
from mobileicsa.bench.phone import phone as phone_module
from mobileicsa.bench.phone.adb import Adb, Disconnected
from mobileicsa.bench.phone.clock import Clock
from mobileicsa.bench.phone.run import Partial, bench_phone
from mobileicsa.cli.main import execute
from mobileicsa.core.errors import DeviceError

PORT = "15037"
LOST = {"code": 1, "err": f"adb: device '{said.SERIAL}' not found\n"}


def bench(artifact: Path, phone: FakePhone, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "serial": None,
        "backends": ["onnx"],
        "prompt_tokens": 8,
        "generate_tokens": 4,
        "repeat": 2,
    }
    return bench_phone(artifact, **{**options, **changes}, clock=phone.clock)


# 68: no adb, no phone, several, one that is not ready.


def test_without_adb_the_way_to_get_it_is_told(
    artifact: Path, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DeviceError, match="adb: not found") as caught:
        bench(artifact, phone)
    assert "platform tools" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("lines", "serial", "message", "remedy"),
    [
        ([], None, "no phone is connected", "USB debugging"),
        ([said.DEVICE, said.SECOND], None, "2 devices: 34291FDHS001AB .*emulator-5554", "--device adb:SERIAL"),
        ([said.SECOND], "34291FDHS001AB", "no device 34291FDHS001AB; there are emulator-5554", "adb devices"),
        ([said.UNAUTHORIZED], None, "unauthorized", "allow USB debugging"),
        ([said.OFFLINE], None, "offline", "adb kill-server"),
        ([said.AUTHORIZING], None, "authorizing", "allow USB debugging"),
        ([said.NO_PERMISSIONS], None, "no permissions", "access to the USB device"),
    ],
)
def test_a_phone_that_is_not_ready_is_told_with_one_action(
    artifact: Path, phone: FakePhone, lines: list[str], serial: str | None, message: str, remedy: str
) -> None:
    phone.set(devices=[said.devices(*lines)])
    with pytest.raises(DeviceError, match=message) as caught:
        bench(artifact, phone, serial=serial)
    assert caught.value.exit_code == 6
    assert remedy in str(caught.value.hint)
    assert phone.clock.seconds < 10


def test_a_state_that_passes_is_waited_for(artifact: Path, phone: FakePhone) -> None:
    phone.set(devices=[said.devices(said.AUTHORIZING), said.devices(said.OFFLINE), said.devices(said.DEVICE)])
    assert bench(artifact, phone)["decode_tokens_per_s"] > 0


def test_the_real_adb_without_a_phone_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's adb and its server, where they are installed; nothing leaves this machine."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed (Debian: apt install adb)")
    # A port of its own: a developer's server, and phones, are left alone.
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", PORT)
    clock = Clock()
    try:
        with pytest.raises(DeviceError, match=r"no phone is connected|no device no-such-phone|adb devices"):
            connect.find_phone("no-such-phone", clock)
        for call in (("shell", "true"), ("push", __file__, "/data/x"), ("pull", "/data/x", "/nonexistent/x")):
            with pytest.raises(Disconnected, match="not found"):
                Adb("no-such-phone").run(*call, timeout_s=20)
    finally:
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)


def test_an_adb_server_that_hangs_ends_within_ten_seconds(
    artifact: Path, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "LIST_TIMEOUT_S", 0.5)
    phone.set(faults=[{"match": "^devices", "hang_s": 30}])
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="no answer within") as caught:
        bench(artifact, phone)
    assert "adb kill-server" in str(caught.value.hint)
    assert time.monotonic() - begin < 10
    assert connect.LIST_TIMEOUT_S + connect.PATIENCE_S + connect.POLL_S < 10


# 69: the cable, the server, the phone's restart.


def test_a_cable_that_slips_during_push_and_run_costs_a_retry(artifact: Path, phone: FakePhone) -> None:
    faults = [
        {"match": r"push .*model\.onnx\b", "times": 2, **LOST},
        {"match": "am start", "times": 1, "code": 255},
        {"match": "pidof", "after": 1, "times": 1, "code": 1, "err": "error: closed\n"},
        {
            "match": "pull",
            "times": 1,
            "code": 1,
            "out": "adb: error: failed to get feature set: device 'x' not found\n",
        },
    ]
    phone.set(faults=faults)
    result = bench(artifact, phone)
    assert result["turns_kept"] == 2
    assert "partial" not in result


def test_a_cable_that_stays_out_ends_after_three_retries(artifact: Path, phone: FakePhone) -> None:
    phone.set(faults=[{"match": "push", **LOST}])
    with pytest.raises(DeviceError, match="connection lost during adb push"):
        bench(artifact, phone)
    assert sum("push" in call for call in phone.calls) == 4
    assert phone.clock.seconds == sum(phone_module.PAUSES_S)


def test_what_was_measured_before_the_cable_was_pulled_is_kept_and_labelled(
    artifact: Path, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    phone.set(faults=[{"match": "am start", "after": 2, **LOST}])
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    monkeypatch.setattr(phone_module.Phone.__init__, "__defaults__", (None, phone.clock))
    sizes = ("--prompt-tokens", "8", "--generate-tokens", "4", "--backend", "onnx")
    assert execute(["bench", str(copy), "--device", "adb", *sizes, "--json"]) == 6
    kept = json.loads((copy / "report.json").read_text())["phone"]
    assert "connection lost" in kept["partial"]
    assert kept["turns_kept"] == 2
    assert kept["decode_tokens_per_s"] > 0
    assert "labelled as partial" in json.loads(capfd.readouterr().out)["error"]["hint"]


def test_a_phone_that_restarts_is_not_gone_on_with(artifact: Path, phone: FakePhone) -> None:
    phone.set(
        faults=[{"match": "am start", "times": 1, **LOST}],
        answers={"boot_id": ["0b1f3a52-77aa-4a3f-9d55-000000000001\n", "ffffffff-77aa-4a3f-9d55-000000000002\n"]},
    )
    with pytest.raises(DeviceError, match="the phone restarted"):
        bench(artifact, phone)


# 70: storage, processor, SELinux, memory, heat.

FULL = "adb: error: failed to copy 'model.onnx' to '/data/local/tmp/x': remote write failed: No space left on device\n"
ABI = (
    "adb: failed to install app.apk: Failure "
    "[INSTALL_FAILED_NO_MATCHING_ABIS: Failed to extract native libraries, res=-113]\n"
)


def test_a_full_phone_is_told_before_the_push(artifact: Path, phone: FakePhone) -> None:
    phone.set(answers={"df -k": said.DF_FULL})
    with pytest.raises(DeviceError, match="MiB that are free") as caught:
        bench(artifact, phone)
    assert "free some storage" in str(caught.value.hint)


def test_a_phone_that_fills_up_meanwhile_says_so(artifact: Path, phone: FakePhone) -> None:
    phone.set(faults=[{"match": "push", "code": 1, "err": FULL}])
    with pytest.raises(DeviceError, match="No space left on device") as caught:
        bench(artifact, phone)
    assert "free some storage" in str(caught.value.hint)


def test_a_file_that_arrives_damaged_is_not_run(artifact: Path, phone: FakePhone) -> None:
    phone.set(faults=[{"match": r"push .*model\.onnx\b", "out": "model.onnx: 1 file pushed\n"}])
    with pytest.raises(DeviceError, match=r"model\.onnx arrived damaged"):
        bench(artifact, phone)


def test_a_processor_without_a_runtime_is_refused(artifact: Path, phone: FakePhone) -> None:
    phone.set(answers={"getprop": "Acme\nOld\n\nmsm8937\n9\n28\narmeabi-v7a,armeabi\n"})
    with pytest.raises(DeviceError, match="runs armeabi-v7a, armeabi"):
        bench(artifact, phone)


def test_an_app_for_another_processor_is_refused_in_the_phones_words(
    artifact: Path, phone: FakePhone, tmp_path: Path
) -> None:
    apk = tmp_path / "app.apk"
    apk.write_bytes(b"PK")
    phone.set(faults=[{"match": "install", "code": 1, "err": ABI}])
    with pytest.raises(DeviceError, match="INSTALL_FAILED_NO_MATCHING_ABIS") as caught:
        bench(artifact, phone, apps=[apk])
    assert "this phone's processor" in str(caught.value.hint)


def test_an_activity_that_does_not_exist_is_an_error(artifact: Path, phone: FakePhone) -> None:
    text = "Starting: Intent { cmp=a/b }\nError type 3\nError: Activity class {a/b} does not exist.\n"
    phone.set(answers={"am start": text})
    with pytest.raises(DeviceError, match="am start: Error"):
        bench(artifact, phone)


def test_selinux_refusals_come_with_what_they_mean(artifact: Path, phone: FakePhone) -> None:
    phone.set(result={"error": "open failed: EACCES (Permission denied) /data/local/tmp/mobileicsa/x/model.onnx"})
    with pytest.raises(DeviceError, match="EACCES") as caught:
        bench(artifact, phone)
    assert "does not let apps read" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("info", "words", "remedy"),
    [
        (said.exit_info(4711, "3 (LOW_MEMORY)"), "LOW_MEMORY", "too little memory"),
        (said.exit_info(4711, "2 (SIGNALED)"), "SIGNALED", "too little memory"),
        (said.exit_info(4711, "5 (CRASH_NATIVE)", "crash"), "CRASH_NATIVE.*crash", "adb logcat"),
        (said.exit_info(99, "3 (LOW_MEMORY)"), "does not say why", "adb logcat"),
    ],
)
def test_a_killed_app_is_told_from_a_slow_one(
    artifact: Path, phone: FakePhone, info: str, words: str, remedy: str
) -> None:
    phone.set(dies=3, answers={"exit-info": info})
    with pytest.raises(DeviceError, match=words) as caught:
        bench(artifact, phone)
    assert remedy in str(caught.value.hint)


def test_a_run_without_end_is_stopped(artifact: Path, phone: FakePhone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.TURN_TIMEOUT_S == 900
    monkeypatch.setattr(app, "TURN_TIMEOUT_S", 60.0)  # each second is a look at the phone, and a process
    phone.set(answers={"pidof": "pid=4711\n"})
    with pytest.raises(DeviceError, match="no result after 60 s"):
        bench(artifact, phone)
    assert any("am force-stop" in call[-1] for call in phone.calls)


def test_a_phone_that_only_throttles_gives_no_figure(artifact: Path, phone: FakePhone) -> None:
    phone.set(answers={"dumpsys thermalservice": said.thermal(3, 47.0)})
    with pytest.raises(DeviceError, match=r"throttled during every turn \(severe\)"):
        bench(artifact, phone)


def test_an_overheated_phone_is_left_alone(artifact: Path, phone: FakePhone) -> None:
    phone.set(answers={"dumpsys thermalservice": [said.thermal()] * 2 + [said.thermal(5, 60.0)]})
    with pytest.raises(Partial, match="overheated") as caught:
        bench(artifact, phone)
    assert caught.value.result["turns_kept"] == 1


# 71: energy that cannot be trusted is a dash with its reason, never a negative number.

GAUGE = {"idle_ua": 150_000, "run_ua": 650_000}
PLUGGED = {"dumpsys battery": said.battery(charging="USB", status=2)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gauge": GAUGE, "answers": PLUGGED}, r"charging \(USB\)"),
        ({"gauge": GAUGE, "answers": {"dumpsys battery": said.battery(status=4)}}, "discharging"),
        ({"gauge": {"idle_ua": 300_000, "run_ua": 300_000, "stuck": True}}, "stuck"),
        ({"gauge": {"idle_ua": 600_000, "run_ua": 300_000}}, "no more while the model runs"),
        ({"gauge": {"idle_ua": 150, "run_ua": 650}}, "another unit"),
        ({"gauge": GAUGE, "step_s": 0.5}, "too short"),
        ({}, "no battery gauge"),
        ({"perfetto": False}, "perfetto does not start"),
        ({"rails": {"S4M_VDD_CPUCL0": [2.0, 1.0]}, "answers": PLUGGED}, "odpm: it reads no more.*charging"),
    ],
)
def test_energy_that_cannot_be_trusted_is_absent_with_its_reason(
    artifact: Path, phone: FakePhone, changes: dict[str, Any], reason: str
) -> None:
    phone.set(**{"rails": {}, "step_s": 3.0, "slowness": {}, **changes})
    result = bench(artifact, phone, generate_tokens=10, repeat=1)
    assert result["energy_mj_per_token"] is None
    assert result["energy_source"].startswith("not measured")
    assert re.search(reason, result["energy_source"])


# 72: what a phone prints is data.


def test_hostile_output_is_shown_harmless_and_short(artifact: Path, phone: FakePhone) -> None:
    nasty = "\x1b[2J\x1b]0;owned\x07 " + "A" * 100_000
    phone.set(faults=[{"match": "push", "code": 1, "err": f"adb: error: failed to copy: {nasty}\n"}])
    with pytest.raises(DeviceError) as caught:
        bench(artifact, phone)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 500


def test_names_of_phones_are_escaped_too(artifact: Path, phone: FakePhone) -> None:
    phone.set(answers={"getprop": "Acme\x1b[31m\nModel\x07\n\n\n15\n35\narm64-v8a\n"})
    assert "\x1b" not in json.dumps(bench(artifact, phone)["environment"], ensure_ascii=False)


def test_a_flood_is_cut_off(phone: FakePhone) -> None:
    phone.set(faults=[{"match": "flood", "out": "A" * 1000, "repeat": 20_000}])
    with pytest.raises(DeviceError, match="printed more than 4 MiB"):
        Adb(said.SERIAL).run("shell", "flood", timeout_s=20)


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_result": "{" * 5000},
        {"raw_result": ""},
        {"raw_result": '{"format": 1, "load_ms": NaN}'},
        {"result": {"load_ms": -1}},
        {"result": {"step_ms": [True] * 4}},
        {"result": {"step_ms": [1.0] * 3}},
        {"result": {"windows_ns": {"idle": [2, 1]}}},
        {"result": {"run": "another"}},
    ],
)
def test_results_are_read_with_suspicion(artifact: Path, phone: FakePhone, changes: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="the app's result"):
        bench(artifact, phone.set(**changes), repeat=1)


def test_a_serial_number_cannot_become_shell_words(artifact: Path, phone: FakePhone, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no device"):
        bench(artifact, phone, serial=f"x; touch {tmp_path}/owned")
    assert not (tmp_path / "owned").exists()
    assert os.environ["PATH"].startswith(str(phone.folder))
