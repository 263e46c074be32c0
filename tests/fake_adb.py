"""A stand-in for the `adb` program and the phone behind it: `fake_adb.py FOLDER adb-arguments…`.

FOLDER/scenario.json says how the phone behaves, FOLDER/state.json remembers between calls, FOLDER/disk is its storage,
FOLDER/calls.jsonl lists the calls. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from pathlib import Path

PID = 4711
IDLE_S, PREFILL_S, STEP_S, LOAD_S = 5.0, 0.064, 0.02, 0.4


class Fake:
    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, folder / "disk"
        self.scenario = json.loads((folder / "scenario.json").read_text())
        kept = folder / "state.json"
        self.state = json.loads(kept.read_text()) if kept.is_file() else {"hits": {}, "boot_s": 1000.0, "windows": []}

    def main(self, arguments: list[str]) -> int:
        with (self.folder / "calls.jsonl").open("a") as log:
            log.write(json.dumps(arguments) + "\n")
        try:
            return self.run(arguments)
        finally:
            (self.folder / "state.json").write_text(json.dumps(self.state))

    def run(self, arguments: list[str]) -> int:
        line = " ".join(arguments)
        for number, fault in enumerate(self.scenario["faults"]):
            if re.search(fault["match"], line, re.DOTALL):
                hit = self.state["hits"][str(number)] = self.state["hits"].get(str(number), 0) + 1
                if fault.get("after", 0) < hit <= fault.get("after", 0) + fault.get("times", 10**9):
                    time.sleep(fault.get("hang_s", 0))
                    sys.stdout.write(fault.get("out", "") * fault.get("repeat", 1))
                    sys.stderr.write(fault.get("err", ""))
                    return int(fault.get("code", 0))
        if arguments[0] == "-s":
            arguments = arguments[2:]
        verb, *rest = arguments
        return getattr(self, f"do_{verb}")(*rest)

    def do_devices(self, *_: str) -> int:
        listings = self.scenario["devices"]
        count = self.state["listed"] = self.state.get("listed", 0) + 1
        sys.stdout.write(listings[min(count, len(listings)) - 1])
        return 0

    def do_push(self, local: str, remote: str) -> int:
        path = self.path(remote)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local, path)
        print(f"{local}: 1 file pushed, 0 skipped. 36.4 MB/s ({path.stat().st_size} bytes in 0.010s)")
        return 0

    def do_pull(self, remote: str, local: str) -> int:
        if not self.path(remote).is_file():
            sys.stderr.write(f"adb: error: failed to stat remote object '{remote}': No such file or directory\n")
            return 1
        shutil.copyfile(self.path(remote), local)
        print(f"{remote}: 1 file pulled, 0 skipped.")
        return 0

    def do_install(self, *arguments: str) -> int:
        self.scenario["packages"] = "all"
        print("Performing Streamed Install\nSuccess")
        return 0

    def do_shell(self, script: str) -> int:
        for words, answer in self.scenario["answers"].items():
            if words in script:
                texts = answer if isinstance(answer, list) else [answer]
                count = self.state["hits"][words] = self.state["hits"].get(words, 0) + 1
                sys.stdout.write(texts[min(count, len(texts)) - 1])
                return 0
        for pattern, act in ((k, getattr(self, v)) for k, v in SHELL.items()):
            found = re.search(pattern, script)
            if found:
                return act(script, found) or 0
        sys.stderr.write(f"/system/bin/sh: {script.split()[0]}: inaccessible or not found\n")
        return 127

    def path(self, remote: str) -> Path:
        return self.disk / remote.strip("'").lstrip("/")

    def make_folder(self, script: str, found: re.Match[str]) -> None:
        self.path(found[1]).mkdir(parents=True, exist_ok=True)

    def digest(self, script: str, found: re.Match[str]) -> None:
        path = self.path(found[1])
        if path.is_file():
            print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {found[1]}")

    def remove(self, script: str, found: re.Match[str]) -> None:
        for name in found[1].split():
            self.path(name).unlink(missing_ok=True)
        for name in re.findall(r"rmdir (\S+) (\S+)", script):
            for folder in map(self.path, name):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def start(self, script: str, found: re.Match[str]) -> None:
        """The headless activity: its result lies there at once, dated on the phone's boot clock."""
        extras = dict(re.findall(r"--e[si] (\w+) (\S+)", script))
        facts = json.loads(self.path(extras["model"]).read_text())
        steps, now = int(extras["generate_tokens"]), self.state["boot_s"] + LOAD_S
        slow = self.scenario["slowness"].get(facts["backend"], 1.0)
        if facts["cache_dtype"] == "float32":
            slow *= 2
        idle = (now, now + IDLE_S)
        prefill = (idle[1], idle[1] + PREFILL_S * slow)
        decode = (prefill[1], prefill[1] + steps * self.scenario["step_s"] * slow)
        self.state["boot_s"] = decode[1] + 1
        self.state["windows"].append(decode)
        result = {
            "format": 1,
            "run": extras["run"],
            "runtime": f"{facts['backend']} 1.2.3",
            "prompt_tokens": int(extras["prompt_tokens"]),
            "load_ms": LOAD_S * 1000,
            "first_token_ms": PREFILL_S * slow * 1000,
            "step_ms": [self.scenario["step_s"] * slow * 1000] * steps,
            "peak_rss_bytes": 300_000_000,
            "rss_before_load_bytes": 90_000_000,
            "windows_ns": {
                name: [int(moment * 1e9) for moment in window]
                for name, window in (("idle", idle), ("prefill", prefill), ("decode", decode))
            },
        } | self.scenario["result"]
        if not self.scenario["dies"]:
            path = self.path(f"/sdcard/Android/data/{found[1]}/files/bench-{extras['run']}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            text = self.scenario["raw_result"]
            path.write_text(json.dumps(result) if text is None else text)
        print(
            f"Stopping: {found[1]}\n"
            f"Starting: Intent {{ cmp={found[1]}/org.mobileicsa.demo.HeadlessActivity (has extras) }}"
        )
        print("Status: ok\nLaunchState: COLD\nTotalTime: 312\nWaitTime: 320\nComplete")

    def watch(self, script: str, found: re.Match[str]) -> None:
        looks = self.state["looks"] = self.state.get("looks", 0) + 1
        if self.scenario["dies"]:
            print(f"pid={PID}\nVmHWM:\t 1945678 kB" if looks <= self.scenario["dies"] else "pid=")
            return
        print(f"pid={PID}\nVmHWM:\t  345678 kB")
        result = re.search(r"\[ -f (\S+) \]", script)
        if result and looks % 2 == 0 and self.path(result[1]).is_file():
            print("finished")

    def record(self, script: str, found: re.Match[str]) -> int:
        assert "android.power" in sys.stdin.read()
        if not self.scenario["perfetto"]:
            sys.stdout.write("/system/bin/sh: perfetto: inaccessible or not found\n")
            return 127
        print("12345")
        return 0

    def stop_recording(self, script: str, found: re.Match[str]) -> None:
        if "-o" in script or "rm -f" in script:
            return
        path = self.path("/data/misc/perfetto-traces/mobileicsa.pftrace")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.trace())

    def trace(self) -> bytes:
        """Samples every 250 ms from the first moment: idle power, and more in every decode window."""
        data, joules, now = bytearray(), dict.fromkeys(self.scenario["rails"], 5.0), 1000.0
        names = [
            message(1, number(1, index) + text(2, name) + text(3, "subsystem") + number(4, 1023))
            for index, name in enumerate(self.scenario["rails"])
        ]
        data += message(1, number(8, int(now * 1e9)) + message(40, b"".join(names))) if names else b""
        gauge = self.scenario["gauge"]
        while now < self.state["boot_s"]:
            busy = any(start <= now < end for start, end in self.state["windows"])
            rails = b"".join(
                message(2, number(1, i) + number(2, round(now * 1000)) + number(3, round(joules[name] * 1e6)))
                for i, name in enumerate(joules)
            )
            data += message(1, number(8, int(now * 1e9)) + message(40, rails)) if rails else b""
            if gauge:
                current = gauge["run_ua" if busy else "idle_ua"]
                current += 0 if gauge.get("stuck") else round(now * 4) % 3
                data += message(1, number(8, int(now * 1e9)) + message(38, number(3, current)))
            for name, (idle_w, run_w) in self.scenario["rails"].items():
                joules[name] += (run_w if busy else idle_w) * 0.25
            now += 0.25
        return bytes(data)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def text(field: int, value: str) -> bytes:
    return message(field, value.encode())


SHELL = {
    r"^mkdir -p (\S+)": "make_folder",
    r"sha256sum (\S+)": "digest",
    r"perfetto --txt": "record",
    r"^kill \d+": "stop_recording",
    r"^rm -f ([^;]*)": "remove",
    r"^am start -W -S -n ([\w.]+)/": "start",
    r"^am force-stop": "nothing",
    r"^p=\$\(pidof ([\w.]+)\)": "watch",
}
Fake.nothing = lambda self, script, found: None  # type: ignore[attr-defined]

if __name__ == "__main__":
    raise SystemExit(Fake(Path(sys.argv[1])).main(sys.argv[2:]))
