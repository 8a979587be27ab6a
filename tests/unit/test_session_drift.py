"""Partitions that are slow for long: found, told with how much, and planned around."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from hal.clock import VirtualClock
from hal.executor.times import Times
from hal.records.plan import Constraints, Plan
from hal.session.drift import LEARNING, LEAST, RUN, SLOWER, Drift, Judge, expected_ns
from hal.session.events import Event
from hal.session.meter import LOOK_NS, Meter
from hal.session.watching import Watcher
from tests.unit import planned
from tests.unit.compared import timing
from tests.unit.surviving import CPU, CUDA0, Rig, ask, check


def windows(judge: Judge, taken_ns: float, n: int) -> list[int]:
    """Windows of one time; the numbers of those at which it was found slow."""
    return [at for at in range(n) if judge.add([round(taken_ns)] * LEAST)]


# --- the test ------------------------------------------------------------------------------------------


def test_a_partition_is_slow_after_twenty_windows_in_a_row() -> None:
    judge = Judge(1000)
    assert windows(judge, 1500, RUN - 1) == []
    assert judge.slowdown == 1
    assert windows(judge, 1000, 1) == []  # one that is well begins the row anew
    assert windows(judge, 1500, 2 * RUN) == [RUN - 1]
    assert judge.slowdown == 1.5


def test_nothing_is_slow_when_times_are_within_the_tolerance() -> None:
    judge = Judge(1000)
    assert windows(judge, SLOWER * 1000, 10 * RUN) == []
    assert judge.slowdown == 1


def test_a_partition_is_told_again_when_it_becomes_much_slower_still() -> None:
    judge = Judge(1000)
    assert windows(judge, 1500, RUN) == [RUN - 1]
    assert windows(judge, 1800, 5 * RUN) == []  # not above 1.25 times what was told
    assert windows(judge, 3000, RUN) == [RUN - 1]
    assert judge.slowdown == 3


def test_a_partition_is_well_again_and_can_be_told_again_when_it_recovers() -> None:
    judge = Judge(1000)
    windows(judge, 2000, RUN)
    windows(judge, 1100, RUN - 1)
    assert judge.slowdown == 2
    windows(judge, 1100, 1)
    assert judge.slowdown == 1
    assert windows(judge, 2000, RUN) == [RUN - 1]


def test_a_few_long_runs_are_no_drift_when_most_are_not() -> None:
    judge = Judge(1000)
    chance = random.Random(0)
    for _ in range(200):
        assert not judge.add([4_000 if chance.random() < 0.2 else 1000 for _ in range(31)])


def test_a_partition_is_slow_when_a_few_runs_are_stopped_for_long() -> None:
    judge = Judge(1000)
    stopped = [1000] * 99 + [1_000_000]
    found = [at for at in range(RUN) if judge.add(stopped)]
    assert found == [RUN - 1]
    assert judge.slowdown == pytest.approx(10.99)
    windows(judge, 1000, RUN)
    assert judge.slowdown == 1


def test_nothing_is_slow_when_single_windows_are_stopped_for_long() -> None:
    judge = Judge(1000)
    for number in range(10 * RUN):
        assert not judge.add([1000] * 99 + [1_000_000 if number % RUN else 1000])


def test_a_window_waits_when_it_has_too_few_samples() -> None:
    judge = Judge(1000)
    for _ in range(LEAST * RUN - 1):
        assert not judge.add([2000])
    assert judge.add([2000])


def test_what_it_should_take_is_learned_when_no_profile_tells() -> None:
    judge = Judge(0)
    for number in range(LEARNING):
        assert judge.expected_ns == 0
        judge.add([900 + 100 * number] * LEAST)
    assert judge.expected_ns == 900
    assert windows(judge, 1800, RUN) == [RUN - 1]


def test_false_alarms_come_as_seldom_as_stated_when_times_are_at_the_edge() -> None:
    # The true median is exactly what is tolerated: the worst case of what is no drift. With a shorter row, so
    # that there is something to count; the mean waiting time is Feller's.
    run, chance = 6, random.Random(1)
    stated = (1 - 0.5**run) / (0.5 * 0.5**run)
    waited, at = [], 0
    judge = Judge(1000, run=run)
    for _ in range(40_000):
        at += 1
        if judge.add([round(SLOWER * 1000 * math.exp(chance.gauss(0, 0.2))) for _ in range(LEAST)]):
            waited.append(at)
            judge, at = Judge(1000, run=run), 0
    # The standard deviation of such a time is about the mean: five standard errors.
    assert abs(sum(waited) / len(waited) - stated) < 5 * stated / math.sqrt(len(waited))
    assert (1 - 0.5**RUN) / (0.5 * 0.5**RUN) == 2**21 - 2  # what the module states


# --- what should it take ---------------------------------------------------------------------------------


def times(plan: Plan, *, is_unlike: bool = False) -> Times:
    return Times([is_unlike] * len(plan.partitions))


def test_the_expected_time_is_the_slower_of_profile_and_finalists() -> None:
    plan = planned.single()
    assert expected_ns(plan, times(plan)) == [120_000]
    measured = msgspec.structs.replace(plan, measured=timing(150_000))
    assert expected_ns(measured, times(plan)) == [150_000]
    faster = msgspec.structs.replace(plan, measured=timing(90_000))
    assert expected_ns(faster, times(plan)) == [120_000]
    assert expected_ns(plan, Times([False], beside_ns=5_000)) == [125_000]


def test_the_expected_time_is_each_partitions_own_when_there_are_several() -> None:
    plan = msgspec.structs.replace(planned.plan(), measured=None)
    assert expected_ns(plan, times(plan)) == [60_000, 30_000]
    measured = msgspec.structs.replace(plan, measured=timing(200_000))  # twice what was predicted
    assert expected_ns(measured, times(plan)) == [120_000, 60_000]


def test_the_time_between_requests_is_no_measure_when_the_plan_is_for_throughput() -> None:
    plan = planned.single()
    asked = msgspec.structs.replace(
        plan, measured=timing(500_000), constraints=Constraints(objective="throughput")
    )
    assert expected_ns(asked, times(plan)) == [120_000]


def test_nothing_is_expected_when_costs_are_estimates_or_by_another_clock() -> None:
    plan = planned.single()
    assert expected_ns(plan, times(plan, is_unlike=True)) == [0]
    guessed = msgspec.structs.replace(plan, estimated=True)
    assert expected_ns(guessed, times(plan)) == [0]
    measured = msgspec.structs.replace(guessed, measured=timing(150_000))
    assert expected_ns(measured, times(plan)) == [150_000]


# --- in a session ---------------------------------------------------------------------------------------


class Drifted:
    """A runner of a plan whose partitions take what they are told to."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.times = plan, times(plan)
        self.told: list[tuple[str, str, Mapping[str, float] | None]] = []

    @property
    def in_force(self) -> tuple[Plan, Times]:
        return self.plan, self.times

    def slow(self, target: str, text: str, slowdown: Mapping[str, float] | None) -> None:
        self.told.append((target, text, slowdown))

    def runs(self, *taken_ns: int) -> None:
        for _ in range(LEAST):
            self.times.add([(0, taken) for taken in taken_ns])


def two() -> Drifted:
    return Drifted(msgspec.structs.replace(planned.plan(), measured=None))


def test_the_partition_that_is_slow_is_told_with_how_much_when_there_are_several() -> None:
    runner = two()
    drift = Drift(runner, Meter(), is_adaptive=False)
    for _ in range(RUN):
        runner.runs(61_000, 75_000)
        drift.look()
    ((target, text, slowdown),) = runner.told
    assert (target, slowdown) == (planned.CPU, None)
    assert text == (
        f"partition 2 of 2 on {planned.CPU} takes 75.0 us, 2.50 times the 30.0 us that it should, in 20 "
        "windows of a second or more: the device is throttled, or something else keeps it busy"
    )
    slow = drift.partitions()[1]
    assert (slow.n_runs, slow.total_ns, slow.expected_ns) == (100, 100 * 75_000, 30_000)
    assert slow.slowdown == 2.5
    assert drift.partitions()[0].slowdown == 1


def test_the_slowdown_is_that_of_the_silicon_when_the_session_is_adaptive() -> None:
    runner = two()
    shared = tuple(msgspec.structs.replace(device, silicon="chip") for device in planned.DEVICES)
    runner.plan = msgspec.structs.replace(runner.plan, devices=shared)
    drift = Drift(runner, Meter(), is_adaptive=True)
    for _ in range(RUN):
        runner.runs(60_000, 75_000)
        drift.look()
    assert [slowdown for _, _, slowdown in runner.told] == [{"chip": 135 / 90}]


def test_partitions_are_judged_anew_when_another_plan_comes_into_force() -> None:
    runner = two()
    drift = Drift(runner, Meter(), is_adaptive=False)
    for _ in range(RUN - 1):
        runner.runs(60_000, 75_000)
        drift.look()
    runner.times = times(runner.plan)
    for _ in range(RUN - 1):
        runner.runs(60_000, 75_000)
        drift.look()
    assert not runner.told
    assert drift.partitions()[0].n_runs == LEAST * (RUN - 1)


def test_requests_count_for_the_plan_in_force_when_it_has_one_partition() -> None:
    clock = VirtualClock()
    meter = Meter(clock.now_ns)

    def run(inputs: Any) -> Any:
        clock.advance(120_000)
        return inputs

    timed = meter.timed(run)
    runner = Drifted(planned.single())
    drift = Drift(runner, meter, is_adaptive=False)
    timed([])
    (part,) = drift.partitions()
    assert (part.n_runs, part.total_ns) == (1, 120_000)
    runner.times = times(runner.plan)
    assert drift.partitions()[0].n_runs == 0
    timed([])
    assert drift.partitions()[0].n_runs == 1


# --- on devices -----------------------------------------------------------------------------------------

#: A request at the pace that is learned, in nanoseconds of the virtual clock.
PACE_NS = LOOK_NS // LEAST + 1


class Slowing:
    """A machine whose devices take time of a virtual clock, and a watcher that goes by it."""

    def __init__(self, *devices: str, is_adaptive: bool = True, **options: Any) -> None:
        self.clock = VirtualClock()
        self.rig = Rig(**options)
        self.moved = threading.Event()
        self.factor = dict.fromkeys(self.rig.backends, 1)
        for device, backend in self.rig.backends.items():
            backend.on_run = lambda _, device=device: self.clock.advance(PACE_NS * self.factor[device])
        self.runner = self.rig.runner(*devices, on_event=self.told)
        self.watcher = Watcher(self.runner, "chain", is_adaptive=is_adaptive, meter=Meter(self.clock.now_ns))
        self.timed = Timed(self.watcher.timed(self.runner.run))

    def told(self, event: Event) -> None:
        self.rig.events.append(event)
        if event.kind == "replanned" or event.text.startswith(("the plan stays", "planning around")):
            self.moved.set()

    def requests(self, n: int) -> None:
        for number in range(n):
            check(self.timed, number % 7)

    def learn(self) -> None:
        self.requests(LEAST * (LEARNING + 2))
        assert self.watcher.metrics().partitions[0].expected_ns

    def finish(self) -> None:
        self.runner.close()
        assert self.rig.all_closed()


class Timed:
    """As a runner, through the meter."""

    def __init__(self, run: Any) -> None:
        self.run = run


def test_the_session_says_so_and_stays_when_a_device_is_slow_and_it_is_not_adaptive() -> None:
    slowing = Slowing("cuda:0", is_adaptive=False)
    slowing.learn()
    slowing.factor["cuda:0"] = 4
    slowing.requests(2 * LEAST * RUN)
    assert slowing.rig.kinds() == ["slow"]
    (event,) = slowing.rig.events
    assert event.target == CUDA0
    assert "4.00 times" in event.text
    metrics = slowing.watcher.metrics()
    assert metrics.events == {"slow": 1}
    assert metrics.partitions[0].slowdown == pytest.approx(4)
    slowing.finish()


def test_another_plan_comes_into_force_when_a_device_is_slow_and_the_session_adaptive() -> None:
    slowing = Slowing("cuda:0")
    slowing.learn()
    slowing.factor["cuda:0"] = 1000
    slowing.requests(LEAST * (RUN + 2))
    assert slowing.moved.wait(timeout=60)
    assert slowing.rig.kinds() == ["slow", "replanned"]
    assert CUDA0 not in slowing.runner.plan.targets
    assert "cuda:0 at 1000" in slowing.runner.plan.notes[-1]
    slowing.requests(5)
    slowing.finish()


def test_the_plan_stays_when_no_other_is_better_than_the_slow_one() -> None:
    slowing = Slowing("cpu:0", constraints=Constraints(targets=("cpu:0/*",)))
    slowing.learn()
    slowing.factor["cpu:0"] = 3
    slowing.requests(2 * LEAST * RUN)
    assert slowing.moved.wait(timeout=60)
    assert slowing.rig.kinds() == ["slow", "slow"]
    assert slowing.rig.events[-1].text == (
        "the plan stays: no other is predicted to be 1.1 times as good as it is now"
    )
    slowing.requests(5)
    slowing.finish()


def test_no_request_is_lost_when_the_plan_is_replaced_under_sixteen_threads() -> None:
    slowing = Slowing("cuda:0")
    runner = slowing.runner
    start = threading.Timer(0, runner.slow, args=(CUDA0, "it is slow", {"cuda:0": 1000.0}))
    start.start()
    answers = ask(slowing.timed, 16, 400)
    assert slowing.moved.wait(timeout=60)
    answers += ask(slowing.timed, 16, 64)
    start.join()
    assert answers == [None] * 464
    assert slowing.rig.kinds() == ["slow", "replanned"]
    assert slowing.watcher.metrics().n_requests == 464
    slowing.finish()


def test_requests_that_fail_are_run_again_when_the_plan_is_just_being_replaced() -> None:
    slowing = Slowing("cuda:0")
    compiling, let_go = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        compiling.set()
        assert let_go.wait(timeout=60)

    def fail(_: int) -> None:
        raise RuntimeError("gone")

    for device in ("cuda:1", "cpu:0"):
        slowing.rig.backends[device].on_compile = hold
    slowing.runner.slow(CUDA0, "it is slow", {"cuda:0": 1000.0})
    assert compiling.wait(timeout=60)
    slowing.rig.backends["cuda:0"].on_run = fail
    answered = threading.Thread(target=check, args=(slowing.timed, 1))
    answered.start()
    let_go.set()
    answered.join()
    check(slowing.timed, 2)
    assert slowing.moved.wait(timeout=60)
    assert slowing.rig.kinds().count("replanned") == 1
    assert CUDA0 not in slowing.runner.plan.targets
    assert slowing.watcher.metrics().n_errors == 0
    slowing.finish()


def test_a_failure_is_planned_around_when_the_slow_plan_was_to_stay() -> None:
    slowing = Slowing("cpu:0")  # the best there is
    slowing.runner.slow(CPU, "it is hardly slow", {"cpu:0": 1.01})
    assert slowing.moved.wait(timeout=60)

    def fail(_: int) -> None:
        raise RuntimeError("gone")

    slowing.rig.backends["cpu:0"].on_run = fail
    check(slowing.timed, 1)
    assert slowing.rig.kinds() == ["slow", "slow", "failed", "replanned", "retried"]
    slowing.finish()


def test_the_plan_stays_and_says_why_when_no_other_can_be_compiled() -> None:
    slowing = Slowing("cuda:0")

    def fail(_: int) -> None:
        raise RuntimeError("cannot be compiled")

    for device in ("cuda:1", "cpu:0"):
        slowing.rig.backends[device].on_compile = fail
    slowing.runner.slow(CUDA0, "it is slow", {"cuda:0": 1000.0})
    assert slowing.moved.wait(timeout=60)
    check(slowing.timed, 1)
    assert slowing.runner.plan.targets == (CUDA0,)
    slowing.finish()


def test_slowdowns_multiply_only_when_the_plan_was_made_for_a_slow_device() -> None:
    slowing = Slowing("cpu:0")  # the best there is

    def found(times: float) -> dict[str, float]:
        slowing.moved.clear()
        slowing.runner.slow(CPU, "it is slow", {"cpu:0": times})
        assert slowing.moved.wait(timeout=60)
        return slowing.runner._remaining._slowdown

    assert found(1.01) == {"cpu:0": 1.01}  # the plan stays, and so do its costs
    assert found(1.02) == {"cpu:0": 1.02}
    assert found(1000.0) == {"cpu:0": 1000.0}
    assert CPU not in slowing.runner.plan.targets
    assert found(2.0) == {"cpu:0": 2000.0}
    slowing.finish()


def test_a_closed_session_plans_nothing_when_it_is_slow() -> None:
    slowing = Slowing("cuda:0")
    slowing.runner.close()
    slowing.runner.slow(CUDA0, "it is slow", {"cuda:0": 1000.0})
    assert slowing.rig.kinds() == ["slow"]
    assert slowing.rig.all_closed()


def test_times_by_a_devices_own_clock_are_told_apart_when_it_has_one() -> None:
    rig = Rig()
    runner = rig.runner("cuda:0")
    assert runner.in_force[1].unlike == (True,)
    runner.close()
