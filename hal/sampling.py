"""The measuring loop: warm-up, bursts, the stopping rule and the verdict.

It runs beside the executable (in the worker's child), so no message passes inside a timed region.
A *burst* is a short row of back-to-back runs; the profiler gives bursts to its targets in turn,
so that all of them meet the same noise. Bursts accumulate until the stopping rule holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from hal import stats

#: One timed run: performs it and returns its duration in nanoseconds.
TimedRun = Callable[[], int]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """When to stop warming up and measuring.

    Source: the two-sided minimum (time and count) follows MLPerf LoadGen's ``min_duration`` and
    ``min_query_count``; the stability window follows Triton Model Navigator's profiler. The
    numbers are hal's own choice: docs/measuring.md says why.
    """

    warm_up_min_ns: int = 100_000_000
    warm_up_max_ns: int = 2_000_000_000
    warm_up_window: int = 5
    warm_up_tolerance: float = 0.05
    burst_ns: int = 60_000_000
    burst_min_runs: int = 3
    burst_lead_in_runs: int = 1
    min_time_ns: int = 600_000_000
    min_runs: int = 20
    min_bursts: int = 9
    max_time_ns: int = 4_000_000_000
    interval_target: float = 0.01
    unstable_above: float = 0.05

    @property
    def digest(self) -> str:
        """The same for policies that ask for the same care."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """What warming up took."""

    first_run_ns: int
    n_runs: int
    total_ns: int
    settled: bool


def warm_up(run: TimedRun, policy: Policy) -> WarmUp:
    """Run until two windows in a row have the same median, or the time is used up."""
    first_run_ns = run()
    durations: list[int] = [first_run_ns]
    total_ns = first_run_ns
    window = policy.warm_up_window
    settled = False
    while total_ns < policy.warm_up_max_ns:
        if len(durations) >= 2 * window + 1 and total_ns >= policy.warm_up_min_ns:
            before = stats.median(durations[-2 * window : -window])
            after = stats.median(durations[-window:])
            if abs(after - before) <= policy.warm_up_tolerance * before:
                settled = True
                break
        duration_ns = run()
        durations.append(duration_ns)
        # A clock that stands still (a fake device, a broken timer) must not loop for ever.
        total_ns += max(duration_ns, 1_000)
    return WarmUp(first_run_ns=first_run_ns, n_runs=len(durations), total_ns=total_ns, settled=settled)


def burst(run: TimedRun, policy: Policy) -> list[int]:
    """Durations (ns) of one row of runs; the lead-in runs, which refill caches, are dropped."""
    for _ in range(policy.burst_lead_in_runs):
        run()
    durations: list[int] = []
    total_ns = 0
    while total_ns < policy.burst_ns or len(durations) < policy.burst_min_runs:
        duration_ns = run()
        durations.append(duration_ns)
        total_ns += max(duration_ns, 1_000)
        if total_ns >= policy.max_time_ns:
            break
    return durations


def is_enough(bursts: Sequence[Sequence[int]], policy: Policy) -> bool:
    """Whether the stopping rule holds: minimum time, runs and bursts, and a tight median."""
    samples = [duration for durations in bursts for duration in durations]
    if not samples:
        return False
    total_ns = sum(max(duration, 1_000) for duration in samples)
    if total_ns >= policy.max_time_ns:
        return True
    if total_ns < policy.min_time_ns or len(samples) < policy.min_runs or len(bursts) < policy.min_bursts:
        return False
    return _uncertainty(bursts) <= policy.interval_target


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a timing can be trusted, and if not, why."""

    stable: bool
    reason: str


def verdict(bursts: Sequence[Sequence[int]], warm: WarmUp, policy: Policy) -> Verdict:
    """Judge a finished series; each reason carries its figure."""
    samples = [float(duration) for durations in bursts for duration in durations]
    reasons: list[str] = []
    if len(samples) < policy.min_runs:
        reasons.append(
            f"only {len(samples)} runs fitted into the time limit (at least {policy.min_runs} wanted)"
        )
    elif not warm.settled:
        reasons.append(f"durations had not settled after {warm.n_runs} runs of warm-up")
    uncertainty = _uncertainty(bursts)
    if uncertainty > policy.unstable_above:
        reasons.append(
            f"the median is known to +-{uncertainty:.1%} only (95% interval over {len(bursts)} bursts): "
            "something else uses this device"
        )
    medians = [stats.median(durations) for durations in bursts]
    half = len(medians) // 2
    if half >= 4:
        drift = stats.median(medians[half:]) / stats.median(medians[:half]) - 1
        if abs(drift) > policy.unstable_above:
            reasons.append(
                f"the second half of the runs was {abs(drift):.1%} "
                f"{'slower' if drift > 0 else 'faster'} than the first: "
                "the clock rate or the load of the machine changed"
            )
    return Verdict(stable=not reasons, reason="; ".join(reasons))


def _uncertainty(bursts: Sequence[Sequence[int]]) -> float:
    # Runs inside a burst share their noise; burst medians are nearly independent, so the interval
    # is taken over them. With few bursts it is their range, which is wide, as it should be; a single
    # burst has only its own runs.
    medians = [stats.median(durations) for durations in bursts]
    return stats.relative_half_width(medians if len(medians) > 1 else bursts[0])
