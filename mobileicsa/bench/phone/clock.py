"""Time as the phone bench sees it, so that tests need not wait."""

from __future__ import annotations

import time


class Clock:
    def now(self) -> float:
        """Seconds, never going back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
