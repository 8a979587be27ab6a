"""What watching costs a call, and how far sessions are from their profiles where nothing is wrong.

First, nanoseconds of processor time that timing adds to a request, by threads that call at once, and that a
plan's partitions add; then what a snapshot takes. Goal (issue 5): below a microsecond a call in all.

Then median and mean of requests over what the profile says they should take, window by window as sessions
look for drift, for each target of a model: what is found slow has to lie well above that. The machine must be
idle.

    python -m benchmarks.watching [--models demo:digits] [--targets cpu:0/onnxruntime/fp32,...] [--windows 20]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import hal
from hal import stats
from hal.errors import HalError
from hal.executor.times import Times
from hal.session.drift import PREEMPTED, SLOWER, expected_ns
from hal.session.meter import LOOK_NS, RECENT, Meter
from hal.testing import example_inputs
from hal.units import format_ns

TARGETS = ("cpu:0/onnxruntime/fp32", "cpu:0/openvino/fp32", "cpu:0/cpu/fp32")
N_CALLS = 200_000
REPEATS = 7


def nothing(inputs: Sequence[Any]) -> Sequence[Any]:
    """A request that costs nothing."""
    return inputs


def per_call(call: Callable[[Sequence[Any]], Any], n_threads: int) -> float:
    """Nanoseconds of processor time per call, of all threads together."""
    each = N_CALLS // n_threads

    def work() -> None:
        for _ in range(each):
            call(())

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    began_ns = time.process_time_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time_ns() - began_ns) / (each * n_threads)


def cost() -> None:
    """What timing adds."""
    for n_threads in (1, 16):
        meter = Meter()
        meter.on_look = lambda now_ns: None
        timed = meter.timed(nothing)
        added = []
        for _ in range(REPEATS):
            plain = per_call(nothing, n_threads)
            added.append(per_call(timed, n_threads) - plain)
        assert meter.latency.n == REPEATS * (N_CALLS // n_threads) * n_threads
        print(f"a request, {n_threads:>2} threads: {stats.median(added):.0f} ns more")
    for n_parts in (2, 4):
        times, span = Times([False] * n_parts), [(0, 1)] * n_parts
        began_ns = time.process_time_ns()
        for _ in range(N_CALLS):
            times.add(span)
        print(f"{n_parts} partitions: {(time.process_time_ns() - began_ns) / N_CALLS:.0f} ns more")


def windows(name: str, target: str, n_windows: int) -> None:
    """Medians of windows over the expected time."""
    with hal.compile(name, targets=[target]) as session:
        inputs = example_inputs(session.graph)
        (expected,) = expected_ns(*session.runner.in_force)
        ratios: list[float] = []
        means: list[float] = []
        while len(ratios) < n_windows:
            taken = []
            began_ns = now_ns = time.perf_counter_ns()
            while now_ns - began_ns < LOOK_NS:
                session(*inputs)
                ended_ns = time.perf_counter_ns()
                taken.append(ended_ns - now_ns)
                now_ns = ended_ns
            kept = taken[-RECENT:]
            ratios.append(stats.median(kept) / expected)
            means.append(sum(kept) / len(kept) / expected)
        began_ns = time.perf_counter_ns()
        _ = session.metrics
        snapshot = format_ns(time.perf_counter_ns() - began_ns)
        n_above = sum(a > SLOWER or b > PREEMPTED for a, b in zip(ratios, means, strict=True))
        print(
            f"{name} {target}: expected {format_ns(expected)}, took {min(ratios):.2f} to {max(ratios):.2f} "
            f"times that, means {min(means):.2f} to {max(means):.2f}; {n_above} of {n_windows} look slow; "
            f"a snapshot took {snapshot}",
            flush=True,
        )


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="demo:digits")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--windows", type=int, default=20)
    given = parser.parse_args()
    cost()
    failed = 0
    for name in given.models.split(","):
        for target in given.targets.split(","):
            try:
                windows(name, target, given.windows)
            except HalError as error:
                failed += 1
                print(f"{name} {target} failed: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
