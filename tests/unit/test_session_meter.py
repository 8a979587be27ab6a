"""Requests counted and timed: rightly from any number of threads, and in bounded memory."""

from __future__ import annotations

import gc
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from hal import stats
from hal.clock import VirtualClock
from hal.session.meter import LOOK_NS, RECENT, Meter
from hal.session.metrics import BOUNDS_NS, PER_DOUBLING, Latency, latency_of
from hal.tensor import Tensor

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def taking(clock: VirtualClock) -> Run:
    """A run that takes as many nanoseconds as its one input says."""

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        clock.advance(inputs[0])
        return inputs

    return run


def metered() -> tuple[Meter, Run, VirtualClock]:
    clock = VirtualClock()
    meter = Meter(clock.now_ns)
    return meter, meter.timed(taking(clock)), clock


def test_every_request_counts_with_its_time_when_times_differ() -> None:
    meter, run, _ = metered()
    for taken_ns in (1, 1_000, 5_000_000, 1 << 42):
        assert run([taken_ns]) == [taken_ns]
    latency = meter.latency
    assert (latency.n, latency.total_ns) == (4, 5_001_001 + (1 << 42))
    assert [bucket.n for bucket in latency.buckets] == [2, 1, 1]
    # The first and the last bucket have what is below and above all bounds.
    assert latency.buckets[0].at_most_ns == BOUNDS_NS[0]
    assert latency.buckets[-1].at_most_ns == BOUNDS_NS[-1]


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_within_a_bucket_when_times_are_of_any_size(seed: int) -> None:
    meter, run, _ = metered()
    chance = random.Random(seed)
    taken = [round(1000 * 10 ** chance.uniform(0, 6)) for _ in range(2000)]
    for taken_ns in taken:
        run([taken_ns])
    latency, step = meter.latency, 2 ** (1 / PER_DOUBLING)
    for percent, told_ns in ((50, latency.p50_ns), (95, latency.p95_ns), (99, latency.p99_ns)):
        # Neighbours of the true quantile: it lies between two of the times.
        low, high = stats.percentile(taken, percent - 0.2), stats.percentile(taken, percent + 0.2)
        assert low / step <= told_ns <= high * step


def test_there_is_no_quantile_when_nothing_ran() -> None:
    assert Meter().latency == Latency()


def test_a_histogram_has_later_requests_only_when_an_earlier_one_is_taken_off() -> None:
    meter, run, _ = metered()
    run([2_000])
    run([8_000])
    before = meter.latency
    run([8_000])
    run([64_000])
    later = meter.latency.since(before)
    assert (later.n, later.total_ns) == (2, 72_000)
    assert later == latency_of_times([8_000, 64_000])


def latency_of_times(times: list[int]) -> Latency:
    counts = [0] * (len(BOUNDS_NS) + 1)
    for taken_ns in times:
        counts[next(at for at, bound in enumerate((*BOUNDS_NS, 1 << 62)) if taken_ns <= bound)] += 1
    return latency_of(counts, sum(times))


def test_errors_are_counted_and_raised_when_a_request_fails() -> None:
    meter = Meter()

    def fail(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        raise KeyboardInterrupt if inputs else ValueError("no")

    run = meter.timed(fail)
    for inputs, kind in (((), ValueError), ((1,), KeyboardInterrupt)):
        with pytest.raises(kind):
            run(inputs)
    assert (meter.n_errors, meter.latency.n, meter.under_way) == (2, 0, (0, 0))


def test_no_request_is_missed_when_sixteen_threads_run_at_once() -> None:
    meter = Meter()
    start = threading.Barrier(16)

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if inputs[0] % 10 == 0:
            raise ValueError("every tenth")
        return inputs

    timed = meter.timed(run)

    def work(_: int) -> None:
        start.wait(timeout=60)
        for number in range(2000):
            if number % 10:
                timed([number])
            else:
                with pytest.raises(ValueError, match="every tenth"):
                    timed([number])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert (meter.latency.n, meter.n_errors) == (16 * 1800, 16 * 200)


def test_counts_stay_and_memory_is_bounded_when_threads_come_and_go() -> None:
    meter, run, _ = metered()
    for _ in range(300):
        thread = threading.Thread(target=run, args=([7_000],))
        thread.start()
        thread.join()
    gc.collect()
    run([7_000])
    assert meter.latency.n == 301
    assert len(meter._tallies) <= 64


def test_a_request_under_way_is_told_with_its_age_when_it_has_not_ended() -> None:
    clock = VirtualClock()
    meter = Meter(clock.now_ns)
    seen = []

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        clock.advance(5_000)
        seen.append(meter.under_way)
        return inputs

    meter.timed(run)([])
    assert seen == [(1, 5_000)]
    assert meter.under_way == (0, 0)


def test_only_requests_that_were_alone_are_kept_when_others_overlap() -> None:
    clock = VirtualClock()
    meter = Meter(clock.now_ns)
    inside, let_go = threading.Event(), threading.Event()

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if inputs[0] == "long":
            inside.set()
            assert let_go.wait(timeout=60)
        clock.advance(3_000)
        return inputs

    timed = meter.timed(run)
    timed(["before"])
    long = threading.Thread(target=timed, args=(["long"],))
    long.start()
    assert inside.wait(timeout=60)
    timed(["beside"])
    timed(["beside too"])
    let_go.set()
    long.join()
    assert list(meter.recent) == [3_000]
    timed(["after"])
    assert list(meter.recent) == [3_000, 3_000]
    assert meter.latency.n == 5


def test_few_times_are_kept_when_nobody_takes_them() -> None:
    meter, run, _ = metered()
    for taken_ns in range(1, 2 * RECENT):
        run([taken_ns])
    assert list(meter.recent) == list(range(RECENT, 2 * RECENT))


def test_requests_of_other_sizes_count_and_are_no_sample_of_the_profile() -> None:
    clock = VirtualClock()
    meter = Meter(clock.now_ns)
    meter.timed(taking(clock), is_profiled=False)([4_000])
    assert meter.latency.n == 1
    assert not meter.recent


def test_each_request_counts_when_one_run_answered_several() -> None:
    meter, run, _ = metered()
    run([4_000])
    meter.add(3, 9_000)
    assert (meter.latency.n, meter.latency.total_ns) == (4, 31_000)
    assert not meter.recent


def test_somebody_looks_once_a_second_when_requests_come() -> None:
    meter, run, _ = metered()
    looked: list[int] = []
    meter.on_look = looked.append
    for _ in range(40):
        run([LOOK_NS // 4])
    assert len(looked) == 8
    assert all(later - sooner >= LOOK_NS for sooner, later in itertools.pairwise(looked))


def test_requests_go_on_when_looking_fails(caplog: pytest.LogCaptureFixture) -> None:
    meter, run, _ = metered()

    def look(_: int) -> None:
        raise ZeroDivisionError("a fault of ours")

    meter.on_look = look
    for _ in range(5):
        run([2 * LOOK_NS])
    assert meter.latency.n == 5
    assert caplog.text.count("looking for slow partitions failed") == 1
