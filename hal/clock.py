"""Clocks, injected wherever time is read, so that everything above is testable without waiting."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic time."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary origin; never goes back."""
        ...


class MonotonicClock:
    """The host's monotonic clock."""

    def now_ns(self) -> int:
        """Nanoseconds of ``time.perf_counter_ns``."""
        return time.perf_counter_ns()


class VirtualClock:
    """A clock that moves only when told to; fake devices and tests own one."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """The virtual time."""
        return self._now_ns

    def advance(self, duration_ns: int) -> None:
        """Move forward.

        Raises:
            ValueError: ``duration_ns`` is negative.
        """
        if duration_ns < 0:
            raise ValueError(f"a clock cannot go back: advance({duration_ns}) ns; expected 0 or more")
        self._now_ns += duration_ns
