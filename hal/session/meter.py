"""Counts and times a session's requests, at less than a microsecond each and without a lock."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence

from hal.session.metrics import BOUNDS_NS, Latency, latency_of
from hal.tensor import Tensor

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
_log = logging.getLogger("hal.session")

#: How often somebody looks at what was measured, at most, in nanoseconds.
#: Source: ours; a look takes some ten microseconds of one request.
LOOK_NS = 1_000_000_000
#: Times of single requests that are kept from one look to the next.
#: Source: ours; a median of 256 is good to about 5 % where times scatter by half.
RECENT = 256


class _Tally:
    """What one thread counted; only that thread adds to it."""

    __slots__ = ("counts", "n_errors", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.total_ns = self.n_errors = 0


class _Alive:
    """Lives as long as a thread does."""


class Meter:
    """What a session's requests took. Any number of threads are timed at once.

    Each thread counts for itself, so that none waits for another; the counts are added up when somebody asks.
    What threads counted that have ended since is kept in one sum: memory does not grow with their number.

    Args:
        now_ns: The clock, in nanoseconds.

    Attributes:
        recent: What requests took that were alone from begin to end, the last :data:`RECENT`. Whoever looks
            takes them out.
        on_look: Called with the time (ns of the clock) by the thread of a request that ended, one at a time,
            at most once in :data:`LOOK_NS`. It must be quick. If it raises, that is logged and it is not
            called again.
    """

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.recent: deque[int] = deque(maxlen=RECENT)
        self.on_look: Callable[[int], None] | None = None
        self._now_ns = now_ns
        self._next_look_ns = now_ns() + LOOK_NS
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._tallies: list[tuple[weakref.ref[_Alive], _Tally]] = []
        self._ended = _Tally()
        self._n_most = 32
        self._inside: dict[_Tally, int] = {}
        self._latest: list[_Tally] = [self._ended]

    def timed(self, run: Run, *, is_profiled: bool = True) -> Run:
        """What does the same as ``run``, and is timed.

        Args:
            run: Carries one request out.
            is_profiled: Whether its requests are of the shapes that the profile is of.
        """
        # Names of this function are read faster than attributes, and this is in the way of each request.
        now_ns, local, inside, latest = self._now_ns, self._local, self._inside, self._latest
        bounds, index, join, look = BOUNDS_NS, bisect_left, self._join, self._look
        recent = self.recent if is_profiled else deque[int](maxlen=0)

        def call(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            try:
                tally: _Tally = local.tally
            except AttributeError:
                tally = join()
            latest[0] = tally
            inside[tally] = began_ns = now_ns()
            is_first = len(inside) == 1
            try:
                outputs = run(inputs)
            except BaseException:
                tally.n_errors += 1
                raise
            finally:
                inside.pop(tally, None)  # a hook may have called the session within this request
            ended_ns = now_ns()
            taken_ns = ended_ns - began_ns
            tally.counts[index(bounds, taken_ns)] += 1
            tally.total_ns += taken_ns
            if is_first and latest[0] is tally:  # nobody was there before, and nobody came since
                recent.append(taken_ns)
            if ended_ns > self._next_look_ns:
                look(ended_ns)
            return outputs

        return call

    def add(self, n: int, taken_ns: int) -> None:
        """Count requests that were answered by one run together.

        Args:
            n: How many.
            taken_ns: What the run took; each of them took as long.
        """
        try:
            tally: _Tally = self._local.tally
        except AttributeError:
            tally = self._join()
        tally.counts[bisect_left(BOUNDS_NS, taken_ns)] += n
        tally.total_ns += n * taken_ns
        # Whoever ran beside it was not alone.
        self._latest[0] = tally
        self.recent.clear()

    @property
    def latency(self) -> Latency:
        """Of the requests that were answered."""
        tallies = self._all()
        counts = [sum(column) for column in zip(*(tally.counts for tally in tallies), strict=True)]
        return latency_of(counts, sum(tally.total_ns for tally in tallies))

    @property
    def n_errors(self) -> int:
        """Requests that raised."""
        return sum(tally.n_errors for tally in self._all())

    @property
    def under_way(self) -> tuple[int, int]:
        """How many requests are under way, and for how long the oldest of them, in nanoseconds."""
        began = list(self._inside.values())
        return len(began), max(self._now_ns() - min(began), 0) if began else 0

    def _all(self) -> list[_Tally]:
        with self._lock:
            return [self._ended, *(tally for _, tally in self._tallies)]

    def _join(self) -> _Tally:
        """The tally of a thread that has none yet."""
        tally, alive = _Tally(), _Alive()
        with self._lock:
            self._tallies.append((weakref.ref(alive), tally))
            if len(self._tallies) > self._n_most:
                self._fold()
        self._local.tally, self._local.alive = tally, alive
        return tally

    def _fold(self) -> None:
        """Add what threads counted that have ended to one sum; the lock is held."""
        kept: list[tuple[weakref.ref[_Alive], _Tally]] = []
        # A new one: a reader may be adding up the old.
        ended = _Tally()
        gone = [self._ended]
        for alive, tally in self._tallies:
            if alive() is None:
                gone.append(tally)
            else:
                kept.append((alive, tally))
        ended.counts = [sum(column) for column in zip(*(tally.counts for tally in gone), strict=True)]
        ended.total_ns = sum(tally.total_ns for tally in gone)
        ended.n_errors = sum(tally.n_errors for tally in gone)
        self._tallies, self._ended = kept, ended
        self._n_most = max(32, 2 * len(kept))

    def _look(self, now_ns: int) -> None:
        if not self._looking.acquire(blocking=False):
            return
        try:
            # Looked at again: another thread may have looked since this one read it.
            if now_ns > self._next_look_ns:
                self._next_look_ns = now_ns + LOOK_NS
                if self.on_look is not None:
                    self.on_look(now_ns)
        except Exception:  # noqa: BLE001  to watch must not cost a request
            self.on_look = None
            _log.exception("looking for slow partitions failed, and is not tried again; please report this")
        finally:
            self._looking.release()


__all__ = ["LOOK_NS", "RECENT", "Meter", "Run"]
