"""Each rule of the model on a case small enough to work out by hand, by the evaluator and the simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.planning.check import check
from hal.planning.evaluate import Values, evaluate
from hal.planning.problem import OUTSIDE, Assignment, Problem
from hal.planning.simulate import simulate
from tests.unit.planning_problems import plans


def chain(time: Any, **fields: Any) -> Problem:
    """Units in a chain, each with one tensor for the next; the last makes the output."""
    time = np.array(time, float)
    n, t = time.shape
    whole: dict[str, Any] = {
        "time": time,
        "silicon": np.arange(t),
        "pool": np.arange(t),
        "producer": np.arange(n),
        "read_tensor": np.arange(n - 1),
        "read_unit": np.arange(1, n),
    }
    return Problem(**{**whole, **fields})


def fan(readers: int, targets: int = 2, **fields: Any) -> Problem:
    """Unit 0 makes tensor 0, which all others read; each unit takes 10."""
    silicon = np.arange(targets)
    whole: dict[str, Any] = {
        "time": np.full((readers + 1, targets), 10.0),
        "silicon": silicon,
        "pool": silicon,
        "producer": [0],
        "read_tensor": np.zeros(readers),
        "read_unit": np.arange(1, readers + 1),
    }
    return Problem(**{**whole, **fields})


def each(tensors: int, targets: int, value: float) -> np.ndarray:
    """A transfer of one length between all unlike targets."""
    return np.full((tensors, targets, targets), value) * (1 - np.eye(targets))


def place(target: list[int], partition: list[int] | None = None) -> Assignment:
    where = np.arange(len(target)) if partition is None else np.array(partition)
    return Assignment(np.array(target, np.int32), where.astype(np.int32))


def judged(problem: Problem, assignment: Assignment) -> Values:
    """What both judges say."""
    values, events = evaluate(problem, assignment), simulate(problem, assignment)
    assert (values.latency, values.throughput, values.energy) == (
        events.latency,
        events.throughput,
        events.energy,
    )
    return values


def test_latency_is_the_sum_when_all_runs_in_one_call() -> None:
    problem = chain([[1, 9], [2, 9], [4, 9]], call=[8, 0])
    assert judged(problem, place([0, 0, 0], [0, 0, 0])).latency == 8 + 7
    assert judged(problem, place([0, 0, 0], [0, 0, 1])).latency == 16 + 7


def test_latency_has_each_side_of_a_handoff_when_it_crosses_targets() -> None:
    sides = {"send": [[1, 0], [0, 0]], "receive": [[0, 2], [0, 0]]}
    problem = chain([[10, 10], [10, 10]], transfer=each(2, 2, 4), **sides)
    assert judged(problem, place([0, 1])).latency == 10 + 1 + 4 + 2 + 10
    assert judged(problem, place([1, 0])).latency == 10 + 4 + 10


def test_handoff_keeps_the_reader_busy_when_it_does_not_overlap() -> None:
    # Unit 2 needs nothing and comes after the reader on its silicon.
    problem = Problem(
        time=np.full((3, 2), 10.0),
        silicon=[0, 1],
        pool=[0, 1],
        producer=[0],
        read_tensor=[0],
        read_unit=[1],
        transfer=each(1, 2, 4),
    )
    beside, within = problem, problem.replace(overlap=False)
    both_on_1 = place([0, 1, 1], [0, 2, 1])
    assert judged(beside, both_on_1).latency == 10 + 4 + 10
    assert judged(within, both_on_1).latency == 10 + 4 + 10
    assert judged(beside, both_on_1).throughput == 20
    assert judged(within, both_on_1).throughput == 24


def test_handoff_is_part_of_the_call_when_targets_share_silicon() -> None:
    problem = chain([[10, 10], [10, 10]], silicon=[0, 0], transfer=each(2, 2, 4))
    values = judged(problem, place([0, 1]))
    assert values.latency == 24
    assert values.throughput == 24


def test_tensor_of_another_partition_costs_its_own_transfer_when_the_target_stays() -> None:
    transfer = np.zeros((2, 2, 2))
    transfer[0, 0, 0] = 3
    problem = chain([[10, 10], [10, 10]], transfer=transfer, receive=np.full((2, 2), 5.0))
    assert judged(problem, place([0, 0])).latency == 23
    assert judged(problem, place([0, 0], [0, 0])).latency == 20


def test_silicon_runs_one_partition_at_a_time_when_it_has_one_slot() -> None:
    problem = fan(3)
    alone = place([0, 1, 1, 1])
    assert judged(problem, alone).latency == 10 + 30
    assert judged(problem.replace(slots=[1, 2]), alone).latency == 10 + 20
    assert judged(problem.replace(slots=[1, 0]), alone).latency == 10 + 10


def test_load_is_shared_by_slots_and_none_when_they_are_not_limited() -> None:
    problem = fan(3)
    alone = place([0, 1, 1, 1])
    assert judged(problem, alone).throughput == 30
    assert judged(problem.replace(slots=[1, 2]), alone).throughput == 15
    assert judged(problem.replace(slots=[1, 0]), alone).throughput == 10


def test_slot_is_held_by_the_lower_number_when_it_still_waits() -> None:
    # Unit 1 waits 40 for its tensor; unit 2 could run at once.
    problem = Problem(
        time=[[40, 40], [10, 10], [10, 10]],
        silicon=[0, 1],
        pool=[0, 1],
        producer=[0],
        read_tensor=[0],
        read_unit=[1],
    )
    waits = place([0, 1, 1], [0, 1, 2])
    assert judged(problem, waits).latency == 60
    assert judged(problem, place([0, 1, 1], [0, 2, 1])).latency == 50
    assert judged(problem.replace(slots=[1, 2]), waits).latency == 50


def test_slots_cost_no_memory_when_there_are_many() -> None:
    problem = fan(3, slots=[2**31 - 1, 2**31 - 1])
    assert judged(problem, place([0, 1, 1, 1])).latency == 20


@pytest.mark.parametrize(("charge", "times"), [("edge", 4), ("partition", 3), ("target", 1)])
def test_charge_says_how_often_a_tensor_is_received_when_four_units_read_it(charge: str, times: int) -> None:
    problem = fan(4, charge=charge, receive=[[0, 2]], overlap=False, transfer=each(1, 2, 1))
    # Units 1 and 2 share a partition.
    values = judged(problem, place([0, 1, 1, 1, 1], [0, 1, 1, 2, 3]))
    assert values.latency == 10 + 40 + times * 3


@pytest.mark.parametrize(("charge", "times"), [("edge", 4), ("partition", 3), ("target", 1)])
def test_charge_says_how_often_a_tensor_is_kept_when_its_own_target_reads_it(charge: str, times: int) -> None:
    transfer = np.zeros((1, 2, 2))
    transfer[0, 0, 0] = 1
    problem = fan(4, charge=charge, transfer=transfer)
    assert judged(problem, place([0, 0, 0, 0, 0], [0, 1, 1, 2, 3])).latency == 50 + times


@pytest.mark.parametrize(("charge", "times"), [("edge", 3), ("partition", 2), ("target", 1)])
def test_charge_says_how_often_an_input_is_received_when_it_comes_from_outside(
    charge: str, times: int
) -> None:
    problem = fan(3, charge=charge, receive=[[2, 0]], transfer=np.full((1, 2, 2), 50.0), producer=[OUTSIDE])
    # Unit 0 reads nothing; units 1 and 2 share a partition.
    assert judged(problem, place([0, 0, 0, 0], [0, 1, 1, 2])).latency == 40 + times * 2


@pytest.mark.parametrize(("charge", "times"), [("edge", 4), ("partition", 3), ("target", 1)])
def test_port_is_busy_for_each_handoff_when_the_charge_repeats_it(charge: str, times: int) -> None:
    problem = fan(4, charge=charge, transfer=each(1, 2, 20), send_port=True)
    values = judged(problem, place([0, 1, 1, 1, 1], [0, 1, 1, 2, 3]))
    assert values.throughput == max(times * 20, 40)


def test_later_readers_wait_for_the_first_handoff_when_a_target_is_charged_once() -> None:
    problem = fan(2, charge="target", transfer=each(1, 2, 7), slots=[1, 2])
    assert judged(problem, place([0, 1, 1])).latency == 10 + 7 + 10
    # Within the first reader's call it holds up nobody else.
    within = problem.replace(overlap=False)
    ends = sorted(event.end for event in simulate(within, place([0, 1, 1])).events)
    assert ends == [10, 20, 27]


def test_handoffs_queue_when_one_silicon_sends_or_receives_them() -> None:
    # Units 0 and 1 on two targets send to unit 2 on a third.
    problem = Problem(
        time=np.full((3, 3), 10.0),
        silicon=[0, 1, 2],
        pool=[0, 1, 2],
        producer=[0, 1],
        read_tensor=[0, 1],
        read_unit=[2, 2],
        transfer=each(2, 3, 5),
    )
    apart = place([0, 1, 2])
    assert judged(problem, apart).latency == 10 + 5 + 10
    assert judged(problem.replace(send_port=True), apart).latency == 10 + 5 + 10
    assert judged(problem.replace(receive_port=True), apart).latency == 10 + 5 + 5 + 10
    to_two = fan(2, targets=3, transfer=each(1, 3, 5))
    assert judged(to_two.replace(receive_port=True), apart).latency == 25
    assert judged(to_two.replace(send_port=True), apart).latency == 30


def test_handoffs_queue_when_they_share_a_link() -> None:
    problem = fan(2, targets=3, transfer=each(1, 3, 5), link=np.zeros((3, 3)))
    values = judged(problem, place([0, 1, 2]))
    assert values.latency == 30
    apart = problem.replace(link=[[-1, 0, 1], [-1, -1, -1], [-1, -1, -1]])
    assert judged(apart, place([0, 1, 2])).latency == 25


def test_handoffs_keep_the_order_of_their_readers_when_a_later_one_could_go_first() -> None:
    # Unit 1 ends at 10 and unit 0 at 40, but the reader of unit 0 has the lower number.
    problem = Problem(
        time=[[40, 40, 99], [10, 10, 99], [99, 99, 1], [99, 99, 1]],
        silicon=[0, 1, 2],
        pool=[0, 1, 2],
        producer=[0, 1],
        read_tensor=[0, 1],
        read_unit=[2, 3],
        transfer=each(2, 3, 5),
        receive_port=True,
        slots=[1, 1, 0],
    )
    assert judged(problem, place([0, 1, 2, 2], [0, 1, 2, 3])).latency == 40 + 5 + 5 + 1
    assert judged(problem, place([0, 1, 2, 2], [0, 1, 3, 2])).latency == 40 + 5 + 1


def test_handoff_needs_no_port_when_it_takes_no_time() -> None:
    transfer = np.zeros((2, 3, 3))
    transfer[0, 0, 2] = 30
    problem = Problem(
        time=np.full((4, 3), 10.0),
        silicon=[0, 1, 2],
        pool=[0, 1, 2],
        producer=[0, 1],
        read_tensor=[0, 1],
        read_unit=[2, 3],
        transfer=transfer,
        receive_port=True,
        slots=[1, 1, 0],
    )
    ends = {e.partition: e.end for e in simulate(problem, place([0, 1, 2, 2])).events if e.kind == "compute"}
    assert ends[2] == 50
    assert ends[3] == 20
    judged(problem, place([0, 1, 2, 2]))


def test_send_is_paid_once_when_several_targets_read_or_it_is_an_output() -> None:
    problem = fan(3, targets=3, send=[[6, 0, 0]])
    assert judged(problem, place([0, 0, 0, 0], [0, 0, 0, 0])).latency == 40
    assert judged(problem, place([0, 1, 2, 2])).latency == 10 + 6 + 20
    wanted = problem.replace(is_output=[True])
    assert judged(wanted, place([0, 0, 0, 0], [0, 0, 0, 0])).latency == 46


def test_send_is_not_paid_when_only_other_partitions_of_the_target_read() -> None:
    problem = fan(3, send=[[6, 0]])
    assert judged(problem, place([0, 0, 0, 0], [0, 1, 2, 3])).latency == 40


def test_energy_counts_units_and_the_time_of_all_that_is_charged_when_power_is_given() -> None:
    problem = chain(
        [[10, 10], [10, 10], [10, 10]],
        energy=[[1, 0], [0, 2], [0, 4]],
        power=[100, 1000],
        call=[1, 2],
        send=[[3, 0], [0, 0], [0, 0]],
        receive=[[0, 5], [0, 0], [0, 0]],
        transfer=each(3, 2, 7),
    )
    crossing = place([0, 1, 1], [0, 1, 1])
    expected = 1 + 2 + 4 + 100 * (1 + 3) + 1000 * (2 + 5 + 7)
    assert judged(problem, crossing).energy == expected
    assert judged(problem.replace(overlap=False), crossing).energy == expected


def test_values_are_infinite_when_a_plan_cannot_be_carried_out() -> None:
    problem = chain([[1, np.inf], [1, 1]])
    infinite = (np.inf, np.inf, np.inf)
    assert evaluate(problem, place([1, 0])) == infinite
    assert evaluate(problem, place([0, 0], [1, 0])) == infinite
    assert evaluate(problem, place([0, 1], [0, 0])) == infinite


@given(plans(max_units=12), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_no_value_falls_when_any_duration_grows(plan: tuple[Problem, Assignment], seed: int) -> None:
    problem, assignment = plan
    rng = np.random.default_rng(seed)
    names = ("time", "transfer", "send", "receive", "call")
    name = names[seed % len(names)]
    value = getattr(problem, name)
    grown = problem.replace(
        **{name: value + rng.integers(0, 4, value.shape) * (rng.random(value.shape) < 0.3)}
    )
    before, after = evaluate(problem, assignment), evaluate(grown, assignment)
    assert after.latency >= before.latency
    assert after.throughput >= before.throughput
    assert after.energy >= before.energy


@given(plans(max_units=12), st.floats(0.1, 1e9))
@settings(max_examples=60, deadline=None)
def test_values_scale_when_all_durations_do(plan: tuple[Problem, Assignment], factor: float) -> None:
    problem, assignment = plan
    names = ("time", "transfer", "send", "receive", "call")
    scaled = problem.replace(
        energy=problem.energy * factor, **{name: getattr(problem, name) * factor for name in names}
    )
    before, after = evaluate(problem, assignment), evaluate(scaled, assignment)
    assert np.allclose(np.array(before) * factor, after, rtol=1e-9)


@given(plans(max_units=12))
@settings(max_examples=60, deadline=None)
def test_latency_is_no_less_than_any_silicons_load_when_it_has_one_slot(
    plan: tuple[Problem, Assignment],
) -> None:
    problem, assignment = plan
    values = check(problem.replace(slots=np.ones(problem.n_silicons)), assignment).values
    assert values.latency >= values.throughput
