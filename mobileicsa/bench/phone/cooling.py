"""Waits until a phone is as cool as at the start, and stops before it harms itself."""

from __future__ import annotations

from mobileicsa.bench.phone.phone import Phone
from mobileicsa.bench.phone.readings import SEVERITY, Thermal
from mobileicsa.core.errors import DeviceError

MARGIN_C = 2.0
MAX_WAIT_S = 300.0
POLL_S = 5.0
CRITICAL = SEVERITY.index("critical")


class Cooling:
    """The skin temperature of the first look is the one to come back to."""

    def __init__(self, phone: Phone) -> None:
        self.phone = phone
        self._start: float | None = None

    def wait(self) -> Thermal:
        """The phone's state once it is not throttled and within MARGIN_C of the start, or after MAX_WAIT_S as it is.

        A phone that stays throttled is not measured in vain: the turn is marked by what `wait` returns.
        """
        end = self.phone.clock.now() + MAX_WAIT_S
        while True:
            state = self.phone.thermal()
            self.check(state)
            if self._start is None and not state.status:
                self._start = state.skin_c
            warm = state.skin_c is not None and self._start is not None and state.skin_c > self._start + MARGIN_C
            if (not state.status and not warm) or self.phone.clock.now() >= end:
                return state
            self.phone.clock.sleep(POLL_S)

    def check(self, state: Thermal) -> None:
        """DeviceError before a thermal shutdown."""
        if state.status is not None and state.status >= CRITICAL:
            raise DeviceError(
                f"{self.phone.serial}: overheated (thermal status {SEVERITY[state.status]})",
                hint="let the phone cool before anything else",
            )
