"""Partitions that take longer than they should, for long: a device that is throttled, a busy neighbour.

The test: about once a second, what a partition took since is held against what it should take. Such a window
looks slow where its median is above :data:`SLOWER` times that, or its mean above :data:`PREEMPTED` times. The
partition is found slow after :data:`RUN` windows in a row that look slow.

What it costs in false alarms: where the true median is at most :data:`SLOWER` times what it should be, each
window's median lies above that with a probability of at most one half, whatever the distribution of the
times. As long as a window looks slow with that probability at most, runs of 20 come once in 2 ** 21 - 2
windows on average, which is 24 days of requests without a pause, for a partition that is at the very edge;
well below the edge they come practically never. Windows are apart in time, and taken for independent: a
neighbour that is busy for 20 seconds is no false alarm but what is looked for.

Source: the sign test's argument (a median has half of its samples above); mean waiting time for a run of
r successes of probability p is (1 - p**r) / ((1 - p) * p**r): Feller, "An Introduction to Probability Theory
and Its Applications", vol. 1, 3rd ed. (1968), XIII.7, equation 7.7.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from hal import stats
from hal.executor.times import Times
from hal.records.plan import Plan
from hal.records.targets import Target
from hal.session.meter import Meter
from hal.session.metrics import Latency, PartitionMetrics
from hal.units import format_ns

#: Windows in a row. Source: ours; the module says what it means for false alarms.
RUN = 20
#: Times of single runs that a window has at least. Source: ours; the test holds for any number.
LEAST = 5
#: What counts as slow: so much longer than it should take.
#: Source: measured here; docs/watching.md has the medians of sessions over those of their profiles.
SLOWER = 1.25
#: What counts as slow of a window's mean: a processor that others keep busy stops a few runs for long, which
#: a median does not see.
#: Source: measured here; with three busy processes on two cores the mean of a model of 22 us rose to 195 us
#: and its median to 24 us. Profiles taken here have means of 1.0 to 1.3 times their medians.
PREEMPTED = 2.0
#: Windows from which it is learned what a partition should take, where no profile tells it by the host's
#: clock; the fastest counts. Source: ours.
LEARNING = 5


class Judge:
    """Says whether one partition is slow.

    Args:
        expected_ns: What it should take; 0 where that is to be learned from the first windows.
        run: Windows in a row.

    Attributes:
        expected_ns: What it should take; 0 as long as it is not known.
        slowdown: How many times as long it takes, where it was found slow; else 1.
    """

    def __init__(self, expected_ns: float, *, run: int = RUN) -> None:
        self.expected_ns = expected_ns
        self.slowdown = 1.0
        self._run = run
        self._samples: list[int] = []
        self._learned: list[float] = []
        self._taken: deque[float] = deque(maxlen=run)
        self._n_above = self._n_below = 0

    @property
    def recent(self) -> float:
        """How many times as long as it should it took in the last windows; 1 where that is not known."""
        return stats.median(self._taken) / self.expected_ns if self._taken else 1.0

    def add(self, samples: Sequence[int]) -> bool:
        """Look at what it took since the last look.

        Args:
            samples: Times of single runs, in nanoseconds. Too few are kept for the next look.

        Returns:
            Whether it was found slow now: for the first time, or much slower than it was found before.
        """
        self._samples += samples
        if len(self._samples) < LEAST:
            return False
        middle, mean = stats.median(self._samples), sum(self._samples) / len(self._samples)
        self._samples.clear()
        if not self.expected_ns:
            self._learned.append(middle)
            if len(self._learned) == LEARNING:
                self.expected_ns = min(self._learned)
            return False
        self._taken.append(mean if mean > PREEMPTED * self.expected_ns else middle)
        known_ns = self.slowdown * self.expected_ns
        is_slow = middle > SLOWER * known_ns or mean > PREEMPTED * known_ns
        is_well = middle <= SLOWER * self.expected_ns and mean <= PREEMPTED * self.expected_ns
        self._n_above = self._n_above + 1 if is_slow else 0
        self._n_below = self._n_below + 1 if is_well else 0
        if self._n_above >= self._run:
            self.slowdown, self._n_above = self.recent, 0
            return True
        if self._n_below >= self._run:
            self.slowdown = 1.0
        return False


class Drifting(Protocol):
    """What runs plans, and may make others."""

    @property
    def in_force(self) -> tuple[Plan, Times]:
        """The plan in force, and what its partitions take."""
        ...

    def slow(self, target: str, text: str, slowdown: Mapping[str, float] | None) -> None:
        """Note that a target is slow, and plan again where it is said by how much.

        Args:
            target: The target.
            text: What was found, in a sentence.
            slowdown: By silicon, how many times as long as it should it takes; None to plan nothing.
        """
        ...


class Drift:
    """Watches the partitions of the plan in force.

    Args:
        runner: Runs it.
        meter: Times the requests; for a plan of one partition these are the partition's times.
        is_adaptive: Whether another plan is wanted where one is slow.
    """

    def __init__(self, runner: Drifting, meter: Meter, *, is_adaptive: bool) -> None:
        self._runner, self._meter, self._is_adaptive = runner, meter, is_adaptive
        self._lock = threading.Lock()
        self._times: Times | None = None
        self._judges: list[Judge] = []
        self._before = Latency()

    def look(self, _: int = 0) -> None:
        """Judge what was measured since the last look."""
        with self._lock:
            plan, times = self._seen()
            samples = [self._meter.recent] if len(plan.partitions) == 1 else times.recent
            judged = [judge.add(_taken(recent)) for judge, recent in zip(self._judges, samples, strict=True)]
            found = [
                (plan.partitions[at].target, self._told(plan, at))
                for at, is_new in enumerate(judged)
                if is_new
            ]
            slowdown = self._slowdown(plan) if found and self._is_adaptive else None
        # Nothing is locked any more: a user's hook is told.
        for number, (target, text) in enumerate(found, 1):
            self._runner.slow(target, text, slowdown if number == len(found) else None)

    def partitions(self) -> tuple[PartitionMetrics, ...]:
        """What the partitions of the plan in force took."""
        with self._lock:
            return self._partitions(*self._seen())

    def _partitions(self, plan: Plan, times: Times) -> tuple[PartitionMetrics, ...]:
        counts = [(times.n_runs, total_ns) for total_ns in times.totals_ns]
        if len(plan.partitions) == 1:
            since = self._meter.latency.since(self._before)
            counts = [(since.n, since.total_ns)]
        return tuple(
            PartitionMetrics(
                number=number,
                target=part.target,
                n_runs=n_runs,
                total_ns=total_ns,
                expected_ns=round(judge.expected_ns),
                slowdown=judge.slowdown,
            )
            for number, (part, judge, (n_runs, total_ns)) in enumerate(
                zip(plan.partitions, self._judges, counts, strict=True)
            )
        )

    def _seen(self) -> tuple[Plan, Times]:
        """What is in force; judged anew where that is not what was."""
        plan, times = self._runner.in_force
        if times is not self._times:
            # Requests since the change and until now count for the plan before: a second's worth.
            self._before = Latency() if self._times is None else self._meter.latency
            self._meter.recent.clear()
            self._times = times
            self._judges = list(map(Judge, expected_ns(plan, times)))
        return plan, times

    def _slowdown(self, plan: Plan) -> dict[str, float]:
        """By silicon: what all its partitions take over what they should."""
        silicon = {device.id: device.silicon for device in plan.devices}
        taken: dict[str, float] = {}
        wanted: dict[str, float] = {}
        for part, judge in zip(plan.partitions, self._judges, strict=True):
            device = Target.parse(part.target).device
            at = silicon.get(device, device)
            taken[at] = taken.get(at, 0.0) + judge.recent * judge.expected_ns
            wanted[at] = wanted.get(at, 0.0) + judge.expected_ns
        return {at: taken[at] / wanted[at] for at in taken if wanted[at] and taken[at] > wanted[at]}

    def _told(self, plan: Plan, at: int) -> str:
        judge = self._judges[at]
        which = f"partition {at + 1} of {len(plan.partitions)}" if len(plan.partitions) > 1 else "the model"
        return (
            f"{which} on {plan.partitions[at].target} takes {format_ns(judge.slowdown * judge.expected_ns)}, "
            f"{judge.slowdown:.2f} times the {format_ns(judge.expected_ns)} that it should, in {RUN} windows "
            "of a second or more: the device is throttled, or something else keeps it busy"
        )


def expected_ns(plan: Plan, times: Times) -> list[float]:
    """What each partition should take by the host's clock, in nanoseconds; 0 where that is not known.

    It is what the profile says, or what was measured of the whole plan where that is more. Costs that are
    estimates and were not measured since are no measure, and neither are times by a device's own clock: they
    lack what the host adds.

    Args:
        plan: The plan.
        times: Says which partitions are timed otherwise here than in the profile, and what is added to all.
    """
    predicted = plan.predicted.latency_ns
    # With several requests in flight the time between them is measured, which is not what one takes.
    is_latency = plan.measured is not None and plan.constraints.objective != "throughput"
    measured = plan.measured.median_ns if plan.measured is not None and is_latency else 0
    if len(plan.partitions) == 1:
        figures = [float(max(predicted, measured) + times.beside_ns)]
    else:
        slack = max(measured / predicted, 1.0) if predicted else 1.0
        figures = [slack * (part.compute_ns + part.handoff_ns) for part in plan.partitions]
    is_guess = plan.estimated and plan.measured is None
    return [
        0.0 if is_guess or is_unlike else figure
        for figure, is_unlike in zip(figures, times.unlike, strict=True)
    ]


def _taken(recent: deque[int]) -> list[int]:
    """Everything that is in it, taken out; requests may add to it meanwhile."""
    found = []
    while True:
        try:
            found.append(recent.popleft())
        except IndexError:
            return found


__all__ = ["PREEMPTED", "RUN", "SLOWER", "Drift", "Judge", "expected_ns"]
