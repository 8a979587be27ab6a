"""One session watched: what it tells of itself; and which sessions of this process there are."""

from __future__ import annotations

import itertools
import threading
import time
import weakref

from hal.session.drift import Drift
from hal.session.meter import Meter, Run
from hal.session.metrics import Metrics
from hal.session.runner import Runner
from hal.session.telemetry import Gauges, process_bytes

_numbers = itertools.count(1)


class Watcher:
    """Counts and times a session's requests, and looks for partitions that are slow.

    Args:
        runner: Runs them.
        model: Name of the model.
        is_adaptive: Whether another plan is wanted where one is slow.
        meter: Times them.
        gauges: Reads the devices.

    Attributes:
        number: Of the session in this process, from 1.
        model: As given.
    """

    def __init__(
        self,
        runner: Runner,
        model: str,
        *,
        is_adaptive: bool = False,
        meter: Meter | None = None,
        gauges: Gauges | None = None,
    ) -> None:
        self.number, self.model = next(_numbers), model
        self._runner, self._since_s = runner, time.time()
        self._meter = meter or Meter()
        self._gauges = gauges or Gauges()
        self._drift = Drift(runner, self._meter, is_adaptive=is_adaptive)
        self._meter.on_look = self._drift.look

    def timed(self, run: Run, *, is_profiled: bool = True) -> Run:
        """What does the same as ``run``, and is timed; see :meth:`hal.session.meter.Meter.timed`."""
        return self._meter.timed(run, is_profiled=is_profiled)

    def add(self, n: int, taken_ns: int) -> None:
        """Count requests that one run answered together; see :meth:`hal.session.meter.Meter.add`."""
        self._meter.add(n, taken_ns)

    def metrics(self) -> Metrics:
        """What it tells now. Any thread may ask; devices are asked at most every half a second."""
        plan = self._runner.plan
        latency, n_errors = self._meter.latency, self._meter.n_errors
        n_in_flight, oldest_ns = self._meter.under_way
        return Metrics(
            at=time.time(),
            since=self._since_s,
            session=self.number,
            model=self.model,
            targets=plan.targets,
            n_requests=latency.n + n_errors,
            n_errors=n_errors,
            n_in_flight=n_in_flight,
            oldest_ns=oldest_ns,
            latency=latency,
            partitions=self._drift.partitions(),
            devices=self._gauges.read(plan, self._runner.places),
            process_bytes=process_bytes(),
            events=dict(self._runner.n_events),
        )


class Sessions:
    """The sessions of this process that are open. Any thread may use it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: in a forked child, whose parent has the sessions."""
        self._lock = threading.Lock()
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()

    def join(self, watcher: Watcher) -> None:
        """A session is there from now on."""
        with self._lock:
            self._watchers.add(watcher)

    def leave(self, watcher: Watcher) -> None:
        """It is there no more. A second call does nothing."""
        with self._lock:
            self._watchers.discard(watcher)

    def __len__(self) -> int:
        with self._lock:
            return len(self._watchers)

    def metrics(self) -> list[Metrics]:
        """What each tells now, by number."""
        with self._lock:
            watchers = list(self._watchers)
        return [one.metrics() for one in sorted(watchers, key=lambda one: one.number)]


#: All of this process that :func:`hal.compile` and :func:`hal.load` made.
SESSIONS = Sessions()

__all__ = ["SESSIONS", "Sessions", "Watcher"]
