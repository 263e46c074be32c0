"""A child process that opens one exported model and times it: JSON lines in on stdin, JSON lines out on stdout.

A process of its own gives each contender its own peak memory and lets a bench interleave several of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mobileicsa.bench import rapl
from mobileicsa.core.errors import MobileICSAError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.machine import peak_memory
from mobileicsa.program.backend import Session, find_backend
from mobileicsa.program.generate import TokenRunner


class Worker:
    """Commands: open, then run as often as wanted, then reload."""

    def open(
        self,
        folder: str,
        backend: str,
        spec: dict[str, Any],
        target: dict[str, Any],
        prefix_length: int,
        dtype: str,
        threads: int | None,
    ) -> dict[str, Any]:
        """Load the model for the first time, the runtime's own start and imports included."""
        model, wanted = ModelSpec.from_json(spec), Target.from_mapping(target, "bench")
        self.vocab = model.vocab_size
        before = peak_memory()
        self.counters = rapl.Counters()
        idle_watts = self._idle_watts()
        self.load: Callable[[], Session] = lambda: find_backend(backend).open(
            Path(folder), model, wanted, threads=threads
        )
        # Speed does not depend on what the prefix rows hold, only on how many there are.
        rows = np.zeros((1, model.num_kv_heads, prefix_length, model.head_dim), dtype=dtype)
        start = time.perf_counter()
        self.runner = TokenRunner(self.load(), wanted, [rows] * (2 * model.num_layers), None)
        return {
            "first_load_ms": _milliseconds(start),
            "rss_before_load_bytes": before,
            "rapl_refused": self.counters.refused,
            "idle_watts": idle_watts,
        }

    def _idle_watts(self) -> float | None:
        """What the machine draws while this process does nothing; None without counters."""
        before = self.counters.read()
        if before is None:
            return None
        time.sleep(rapl.IDLE_S)
        return ((self.counters.read() or 0) - before) / 1e6 / rapl.IDLE_S

    def run(self, prompt_tokens: int, generate_tokens: int) -> dict[str, Any]:
        """One prompt and the tokens behind it; every contender feeds the same ids."""
        ids = [(7 * i + 3) % self.vocab for i in range(prompt_tokens + generate_tokens)]
        self.runner.reset()
        start = time.perf_counter()
        self.runner.prefill(ids[:prompt_tokens], last_only=True)[0].argmax()
        first_token_ms = _milliseconds(start)
        steps = []
        before = self.counters.read()
        for token in ids[prompt_tokens:]:
            start = time.perf_counter()
            self.runner.decode(token).argmax()
            steps.append(_milliseconds(start))
        after = self.counters.read()
        joules = None if before is None or after is None else (after - before) / 1e6
        return {
            "first_token_ms": first_token_ms,
            "step_ms": steps,
            "peak_rss_bytes": peak_memory(),
            "decode_joules": joules,
        }

    def reload(self) -> dict[str, Any]:
        """Load again with the runtime already started: what a running app waits for. Ends the runs."""
        self.runner.session.close()
        start = time.perf_counter()
        session = self.load()
        load_ms = _milliseconds(start)
        session.close()
        return {"load_ms": load_ms}


def _milliseconds(start: float) -> float:
    return (time.perf_counter() - start) * 1000


Commands = Mapping[str, Callable[..., dict[str, Any]]]


def serve(lines: Iterable[str], out: TextIO, commands: Commands) -> None:
    """Answer each request {"command", arguments} with a line of what the command returns, or of its error."""
    for line in lines:
        request = json.loads(line)
        try:
            answer = commands[request.pop("command")](**request)
        except MobileICSAError as error:
            answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def answer_lines(lines: Iterable[str], commands: Commands) -> None:
    """`serve` on stdout, which runtimes print to: it is kept for the answers alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(lines, answers, commands)


def main() -> None:
    worker = Worker()
    answer_lines(sys.stdin, {"open": worker.open, "run": worker.run, "reload": worker.reload})


if __name__ == "__main__":
    main()
