"""When something that does one thing at a time is busy, in virtual time."""

from __future__ import annotations

import bisect

#: Times between busy ones that are remembered; older ones count as busy.
#: Source: ours; a device with a thousand requests in flight is not emulated.
_MOST = 1000


class Timeline:
    """Busy times, which can be booked in any order: a later call may fill a gap that an earlier one left.

    Calls come in the order of real time, which says little of virtual time. What is ready first there goes
    first, as on a device that never idles while there is work.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def end_ns(self) -> int:
        """When the last busy time is over; 0 where there was none."""
        return self._ends[-1] if self._ends else 0

    def book(self, ready_ns: int, duration_ns: int) -> int:
        """Be busy in the first gap that is long enough; returns when that ends.

        Args:
            ready_ns: Not before this time.
            duration_ns: Above 0.
        """
        at = bisect.bisect_right(self._ends, ready_ns)
        start_ns = ready_ns
        while at < len(self._starts) and self._starts[at] < start_ns + duration_ns:
            start_ns = max(start_ns, self._ends[at])
            at += 1
        end_ns = start_ns + duration_ns
        joins_before = at > 0 and self._ends[at - 1] == start_ns
        joins_behind = at < len(self._starts) and self._starts[at] == end_ns
        if joins_before and joins_behind:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_before:
            self._ends[at - 1] = end_ns
        elif joins_behind:
            self._starts[at] = start_ns
        else:
            self._starts.insert(at, start_ns)
            self._ends.insert(at, end_ns)
        if len(self._starts) > _MOST:
            del self._starts[1], self._ends[0]
        return end_ns
