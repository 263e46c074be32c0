"""Command lines of `mobileicsa` whose JSON answers are kept in a work folder: what is done is not done again."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mobileicsa.bench.environment import environment
from mobileicsa.io.json_file import write_json

MODEL = "smollm2-135m"
INTEGER_ONLY = "generic-npu"
WINDOW = 256
RESULTS = Path(__file__).parent / "results"


class Steps:
    """Command lines whose JSON answers are kept in the work folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        (work / "answers").mkdir(parents=True, exist_ok=True)

    def ask(self, name: str, *arguments: str, allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """The answer of `mobileicsa <arguments> --json`, with its wall time and peak memory."""
        return self.run(name, [sys.executable, "-m", "mobileicsa", *arguments, "--json"], allowed)

    def run(self, name: str, command: list[str], allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """The JSON answer that a command prints, with its wall time, peak memory and machine."""
        path = self.work / "answers" / f"{name}.json"
        if not path.is_file():
            print(f"{name}: {' '.join(command[2:])}", flush=True)
            write_json(path, _measured(command, allowed))
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "made_on" not in answer:
            raise SystemExit(f"{path}: of an older version, which did not say where it ran; begin a new --work folder")
        return answer

    def artifact(self, name: str) -> str:
        return str(self.work / name)

    def perplexity(
        self,
        model: str,
        name: str,
        backend: str,
        text: Path,
        windows: int | None,
        target: str | None = None,
        reference: str | None = None,
    ) -> dict[str, Any]:
        arguments = ["--model", model, "--backend", backend, "--text", str(text), "--window", str(WINDOW)]
        arguments += [] if windows is None else ["--max-windows", str(windows)]
        arguments += [] if target is None else ["--target", target]
        arguments += [] if reference is None else ["--reference", reference]
        return self.ask("-".join(("eval", name, backend, *([] if target is None else [target]))), "eval", *arguments)


def read_result(stem: str) -> dict[str, Any] | None:
    """The committed result of this name, or None."""
    path = RESULTS / f"{stem}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_result(stem: str, result: dict[str, Any], figure: str) -> None:
    """A result and its SVG figure, under the names that the README and its tables know."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{stem}.json"
    write_json(path, result)
    path.with_suffix(".svg").write_text(figure, encoding="utf-8")
    print(f"wrote {path} and .svg")


def _measured(command: list[str], allowed: tuple[int, ...]) -> dict[str, Any]:
    """Run a command; its JSON answer, wall seconds and peak resident memory (of the process itself)."""
    read, write = os.pipe()
    start = time.monotonic()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as answer:
        text = answer.read()
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in allowed:
        raise SystemExit(f"exit code {code}: {' '.join(command)}\n{text}")
    return {
        "answer": json.loads(text),
        "wall_s": round(time.monotonic() - start, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "made_on": made_on(),
    }


def made_on() -> dict[str, Any]:
    """What a time depends on, for a table whose rows were not all made on one machine."""
    facts = environment()
    return {"cores": facts["cores"], "cpu": facts["cpu"]}
