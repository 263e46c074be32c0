"""Progress of long commands: bars with time left on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# Below this share of the whole, a time left would be a guess.
MIN_SHARE = 0.02


@dataclass(frozen=True)
class Share:
    """A step that will come, and its expected part of the whole time (any unit)."""

    title: str
    weight: float


class Clock:
    """Time left over all steps of an outline, from the steps done in this run.

    Steps that never start (finished by an earlier run) count neither as work done nor as work left.
    """

    def __init__(self, outline: Sequence[Share], now: Callable[[], float] = time.monotonic) -> None:
        self._outline, self._now = list(outline), now
        self._started = now()
        self._index = -1
        self._worked = 0.0
        self._part = 0.0

    @property
    def elapsed_s(self) -> float:
        return self._now() - self._started

    def begin(self, title: str) -> None:
        self.advance(1.0)
        if 0 <= self._index < len(self._outline):
            self._worked += self._outline[self._index].weight
        titles = [share.title for share in self._outline]
        self._index = titles.index(title) if title in titles else len(titles)
        self._part = 0.0

    def advance(self, part: float) -> None:
        """`part` of the present step is done, in [0, 1]."""
        self._part = part

    def left_s(self) -> float | None:
        """Seconds left, or None while too little is known."""
        if not 0 <= self._index < len(self._outline):
            return None
        weight = self._outline[self._index].weight
        done = self._worked + weight * self._part
        ahead = weight * (1 - self._part) + sum(share.weight for share in self._outline[self._index + 1 :])
        if done < MIN_SHARE * (done + ahead):
            return None
        return self.elapsed_s * ahead / done


class Lines:
    """One plain line when a step starts."""

    def __init__(self, console: Console, outline: Sequence[Share] = ()) -> None:
        self._console, self._clock = console, Clock(outline)

    def step(self, title: str, total: int) -> Callable[[], None]:
        self._clock.begin(title)
        left = self._clock.left_s()
        tail = "" if left is None else f"  (about {duration(left)} left)"
        self._console.print(f"[{self._clock.elapsed_s:7.1f} s] {title}{tail}", markup=False, highlight=False)
        ticks = _fractions(total)
        return lambda: self._clock.advance(next(ticks))


class Bars:
    """A bar for the present step and, with an outline, one for the whole run; finished steps leave a line."""

    def __init__(self, console: Console, outline: Sequence[Share] = ()) -> None:
        self._console, self._clock = console, Clock(outline)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            # What libraries print is not for this terminal (see streams.py), and rich would bring it here.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._step_started = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish_step()
        self._progress.stop()

    def step(self, title: str, total: int) -> Callable[[], None]:
        self._finish_step()
        self._clock.begin(title)
        self._title, self._step_started = title, self._clock.elapsed_s
        task = self._task = self._progress.add_task(title, total=total, left=self._left())
        ticks = _fractions(total)

        def tick() -> None:
            if self._task != task:  # another step began within this one, and took its place
                return
            self._clock.advance(next(ticks))
            self._progress.update(task, advance=1, left=self._left())

        return tick

    def _left(self) -> str:
        left = self._clock.left_s()
        return "" if left is None else f"whole run: about {duration(left)} left"

    def _finish_step(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            seconds = self._clock.elapsed_s - self._step_started
            self._progress.console.print(
                f"  {self._title}  {seconds:.1f} s", markup=False, highlight=False, style="dim"
            )
            self._task = None


def duration(seconds: float) -> str:
    """As a person says it: 40 s, 3 min, 1 h 20 min."""
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _fractions(total: int) -> Iterator[float]:
    """1/total, 2/total, ... 1, and 1 for ticks beyond the promised number."""
    done = 0
    while True:
        done += 1
        yield min(done / max(total, 1), 1.0)
