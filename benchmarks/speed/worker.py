"""A child process that opens one contender: JSON lines in on stdin, JSON lines out on stdout, as bench's worker."""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.speed.engine import open_engine
from mobileicsa.bench.worker import Commands, answer_lines
from mobileicsa.io.machine import peak_memory


class Worker:
    """open, then run, score and reload as often as wanted."""

    def open(self, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
        before = peak_memory()
        self._made = (kind, settings)
        start = time.perf_counter()
        self._engine = open_engine(kind, settings)
        return {"first_load_ms": _milliseconds(start), "rss_before_load_bytes": before}

    def run(self, prompt_tokens: int, generate_tokens: int, vocab: int) -> dict[str, Any]:
        """One prompt and the tokens behind it; every contender feeds the same ids."""
        ids = [(7 * i + 3) % vocab for i in range(prompt_tokens + generate_tokens)]
        start = time.perf_counter()
        self._engine.start(ids[:prompt_tokens])
        first_token_ms = _milliseconds(start)
        steps = []
        for token in ids[prompt_tokens:]:
            start = time.perf_counter()
            self._engine.step(token)
            steps.append(_milliseconds(start))
        return {"first_token_ms": first_token_ms, "step_ms": steps, "peak_rss_bytes": peak_memory()}

    def score(self, text: str, window: int, windows: int | None) -> dict[str, Any]:
        """Perplexity; the tokens and positions that count are the same for every engine."""
        from mobileicsa.evaluate.perplexity import evaluate

        return evaluate(self._engine, text, window=window, max_windows=windows)

    def reload(self) -> dict[str, Any]:
        """Load again with the runtime already started: what a running app waits for."""
        kind, settings = self._made
        self._engine.close()
        start = time.perf_counter()
        self._engine = open_engine(kind, settings)
        return {"load_ms": _milliseconds(start)}


def _milliseconds(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def main() -> None:
    worker = Worker()
    commands: Commands = {"open": worker.open, "run": worker.run, "score": worker.score, "reload": worker.reload}
    answer_lines(sys.stdin, commands)


if __name__ == "__main__":
    main()
