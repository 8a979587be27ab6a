"""Ways to run a placement, measured under load in child processes. What fails is kept as its reason."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hal import stats
from hal.backend import Kernel, KernelRuns
from hal.choosing.finalists import Arena, Measured
from hal.choosing.throughput_load import ALONE, REQUEST, TOGETHER, load_configuration, load_ref
from hal.choosing.throughput_ways import Way
from hal.errors import BackendError, HalError
from hal.executor.backend import PLAN, Spot
from hal.executor.joining import worth_from
from hal.profiling import judge
from hal.profiling.privacy import scrub
from hal.records.plan import Throughput
from hal.records.profile import OutputError, TargetProfile, Timing
from hal.tensor import as_numpy
from hal.worker import WorkerBackend, WorkerExecutable

#: Least and most rounds of a burst. Source: ours; with three, the ends of runs that do not meet count little.
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 2_000
#: Requests and rounds of the last measurement, where they take no longer than ten seconds: three requests are
#: above the 99th percentile. From the most nothing new is learned. Source: ours.
_LAST_REQUESTS, _LAST_ROUNDS, _LAST_MOST_NS, _MOST_REQUESTS = 300, 20, 10_000_000_000, 20_000


class Child:
    """A process that runs the ways of one placement, one at a time.

    Args:
        arena: What is measured.
        spots: Devices of this machine.
        ways: Whose targets it may be asked for.
    """

    def __init__(self, arena: Arena, spots: Mapping[str, Spot], ways: Sequence[Way]) -> None:
        self.arena = arena
        self._placements = list(dict.fromkeys(way.candidate.pieces for way in ways))
        self._ref = load_ref(spots, self._placements)
        self._backend: WorkerBackend | None = None

    def compile(self, way: Way) -> WorkerExecutable:
        """Start the process where it is not there, and compile."""
        job = self.arena.job
        if self._backend is None:
            self._backend = WorkerBackend(self._ref, deadlines=job.deadlines)
            self._backend.discover()
        pieces = way.candidate.pieces
        configuration = load_configuration(pieces, self._placements.index(pieces), way.n_in_flight, way.batch)
        return self._backend.compile(PLAN, job.subject.graph, configuration)

    def close(self) -> None:
        """End the process. A second call does nothing."""
        if self._backend is not None:
            self._backend.close()


class LoadLane:
    """One way, from compiling to its record.

    Args:
        child: Where it runs; stays the caller's.
        way: What is measured.

    Attributes:
        way: What is measured.
        failure: Why it is out; empty where it is not.
        bursts_ns: Time per request in each burst.
        errors: Of the answers against the reference.
    """

    def __init__(self, child: Child, way: Way) -> None:
        self.way = way
        self.failure = ""
        self.bursts_ns: list[int] = []
        self.errors: tuple[OutputError, ...] = ()
        self._child = child
        self._executable: WorkerExecutable | None = None
        self._n_rounds = 1
        self._alone_ns: list[int] = []
        self._together_ns: list[int] = []

    @property
    def interval_ns(self) -> float:
        """Median time per request; infinite where it failed."""
        return stats.median(self.bursts_ns) if self.bursts_ns and not self.failure else float("inf")

    @property
    def run_ns(self) -> float:
        """What one run takes, nothing else going on."""
        found = self._together_ns if self.way.batch > 1 else self._alone_ns
        return stats.median(found) if found else 0.0

    def start(self) -> None:
        """Compile, judge the answers, and warm up with one short burst."""
        arena = self._child.arena
        subject = arena.job.subject
        try:
            executable = self._executable = self._child.compile(self.way)
            if arena.reference is not None:
                answers = [as_numpy(output) for output in executable.run(subject.inputs)]
                self.errors = judge.compare(executable.signature, arena.reference, answers)
                self.failure = self._fault(arena)
            if not self.failure:
                self._measure(_LEAST_ROUNDS)
                # By what a run takes: what three rounds take depends on how the ends of runs meet.
                n_rounds = int(arena.job.policy.burst_ns / max(self.run_ns, 1))
                self._n_rounds = min(max(n_rounds, _LEAST_ROUNDS), _MOST_ROUNDS)
                self._measure(self._n_rounds)
        except HalError as error:
            self._fail(error)

    def burst(self) -> None:
        """One burst more."""
        if self.failure:
            return
        try:
            taken_ns, _ = self._measure(self._n_rounds)
            self.bursts_ns.append(round(taken_ns / (self._n_rounds * self._a_round)))
        except HalError as error:
            self._fail(error)

    def load(self) -> Throughput:
        """What it brings, measured once more, for the policy's ``min_time_ns`` at least.

        Raises:
            HalError: It fails now.
        """
        interval_ns = max(self.interval_ns, 1.0)
        least_ns = self._child.arena.job.policy.min_time_ns
        wanted = max(least_ns / interval_ns, _LAST_REQUESTS, _LAST_ROUNDS * self._a_round)
        wanted = min(wanted, _MOST_REQUESTS)
        n_requests = min(wanted, max(_LAST_MOST_NS / interval_ns, _LEAST_ROUNDS * self._a_round))
        n_rounds = max(round(n_requests / self._a_round), _LEAST_ROUNDS)
        taken_ns, durations_ns = self._measure(n_rounds)
        batch = self.way.batch
        worth = 1
        if batch > 1:
            worth = worth_from(stats.median(self._alone_ns), stats.median(self._together_ns), batch)
        return Throughput(
            n_in_flight=self.way.n_in_flight,
            batch=batch,
            worth_from=worth,
            requests_per_s=round(1e9 * n_rounds * self._a_round / max(taken_ns, 1), 1),
            p50_ns=round(stats.percentile(durations_ns, 50)),
            p95_ns=round(stats.percentile(durations_ns, 95)),
            p99_ns=round(stats.percentile(durations_ns, 99)),
            n_requests=len(durations_ns),
        )

    def close(self) -> None:
        """Let go of what was compiled. A second call does nothing."""
        executable, self._executable = self._executable, None
        try:
            if executable is not None:
                executable.close()
        except HalError as error:
            self._fail(error)

    def measured(self, number: int, group: int) -> Measured:
        """For the record of the plan.

        Args:
            number: Of the round of measuring.
            group: Lanes of one group ran in turn in their last bursts.
        """
        candidate = self.way.candidate
        named = type(candidate)(self.way.name, candidate.plan, candidate.predicted_ns, number)
        record = TargetProfile(
            target=candidate.plan.targets[0],
            status="failed" if self.failure else "ok",
            reason=self.failure,
            timing=self._timing(group),
            errors=self.errors,
        )
        return Measured(named, record, self.failure)

    @property
    def _a_round(self) -> int:
        return self.way.n_in_flight * self.way.batch

    def _measure(self, n_rounds: int) -> tuple[int, list[int]]:
        """Time of some rounds, and of each request in them."""
        if self._executable is None:
            raise BackendError(f"{self.way.name} is not compiled")
        runs = self._executable.kernel_runs(self._child.arena.job.subject.inputs, n_rounds)
        self._alone_ns += _of(runs, ALONE)
        self._together_ns += _of(runs, TOGETHER)
        return runs.run_ns[0], _of(runs, REQUEST)

    def _fault(self, arena: Arena) -> str:
        precisions = {piece.target.split("/")[2].split("+")[0] for piece in self.way.candidate.pieces}
        precision = next((p for p in ("bf16", "fp16") if p in precisions), "fp32")
        if fault := judge.fault(self.errors, precision, arena.job.subject.graph):
            return f"wrong: {fault}"
        worst = max(
            (e.relative_l2 if e.relative_l2 is not None else float("inf") for e in self.errors), default=0
        )
        if arena.max_error > 0 and worst > arena.max_error:
            return f"its measured error is {worst:.3g} (relative L2); at most {arena.max_error:g} is allowed"
        return ""

    def _timing(self, group: int) -> Timing | None:
        taken = self.bursts_ns
        if self.failure or not taken:
            return None
        interval = stats.median_interval(taken)
        spread = stats.relative_half_width(taken)
        is_stable = spread <= self._child.arena.job.policy.unstable_above
        return Timing(
            median_ns=round(stats.median(taken)),
            p10_ns=round(stats.percentile(taken, 10)),
            p90_ns=round(stats.percentile(taken, 90)),
            n=len(taken),
            interval_low_ns=round(interval.low),
            interval_high_ns=round(interval.high),
            stable=is_stable,
            reason="" if is_stable else f"the median is known to +-{spread:.1%} only ({len(taken)} bursts)",
            bursts_ns=tuple((one,) for one in taken),
            group=group,
        )

    def _fail(self, error: HalError) -> None:
        self.failure = scrub(error.message)


def in_turn(lanes: Sequence[LoadLane], n_bursts: int) -> None:
    """Bursts of all in turn, in a new random order each time; earlier ones are forgotten.

    Args:
        lanes: Started.
        n_bursts: Of each.
    """
    order = random.Random(0)
    for lane in lanes:
        lane.bursts_ns.clear()
    going = list(lanes)
    for _ in range(n_bursts):
        order.shuffle(going)
        for lane in going:
            lane.burst()


def _of(runs: KernelRuns, name: str) -> list[int]:
    found: Any = next((kernel for kernel in runs.kernels if kernel.name == name), None)
    return list(found.durations_ns) if isinstance(found, Kernel) else []


__all__ = ["Child", "LoadLane", "in_turn"]
