"""The simulator and the evaluator find the same, and what the simulator shows obeys the rules."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hal.planning
from hal.planning.check import check
from hal.planning.problem import CHARGES, OBJECTIVES, OUTSIDE, Assignment, Problem
from hal.planning.simulate import Event, Resource, simulate
from tests.unit.planning_problems import SHAPES, damaged, plans, random_assignment, random_problem

laws = settings(max_examples=150, deadline=None)


def assert_same(problem: Problem, assignment: Assignment) -> None:
    """Values, peaks and violations, their texts included."""
    checked, simulated = check(problem, assignment), simulate(problem, assignment)
    assert np.allclose(
        checked.values, (simulated.latency, simulated.throughput, simulated.energy), rtol=1e-9, atol=0
    )
    assert np.allclose(checked.peaks, simulated.peaks, rtol=1e-9, atol=0)
    assert sorted(checked.violations) == sorted(simulated.violations)
    for name in OBJECTIVES:
        asked = problem.replace(objective=name)
        assert checked.objective(asked) == pytest.approx(simulated.objective(name), rel=1e-9)


@given(plans(max_units=14))
@laws
def test_simulator_and_check_agree_when_a_plan_can_be_carried_out(plan: tuple[Problem, Assignment]) -> None:
    assert_same(*plan)


@given(plans(max_units=8), st.integers(0, 10**6))
@laws
def test_simulator_and_check_agree_when_a_plan_is_damaged(
    plan: tuple[Problem, Assignment], seed: int
) -> None:
    assert_same(plan[0], damaged(np.random.default_rng(seed), *plan))


@pytest.mark.parametrize("charge", CHARGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_simulator_and_check_agree_when_graphs_are_large(shape: str, charge: str) -> None:
    rng = np.random.default_rng(5)
    for overlap in (True, False):
        problem = random_problem(rng, 300, 5, shape=shape, charge=charge, overlap=overlap)
        assert_same(problem, random_assignment(rng, problem))


@given(plans(max_units=14), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_simulator_and_check_agree_when_durations_are_not_whole(
    plan: tuple[Problem, Assignment], seed: int
) -> None:
    problem, assignment = plan
    rng = np.random.default_rng(seed)
    names = ("time", "transfer", "send", "receive", "call", "energy", "power")
    uneven = {
        name: getattr(problem, name) * rng.uniform(0.5, 2, getattr(problem, name).shape) for name in names
    }
    assert_same(problem.replace(**uneven), assignment)


@given(plans(max_units=14))
@laws
def test_every_unit_runs_once_after_what_it_reads_when_a_plan_is_simulated(
    plan: tuple[Problem, Assignment],
) -> None:
    problem, assignment = plan
    events = simulate(problem, assignment).events
    calls = {event.partition: event for event in events if event.kind == "compute"}
    assert len(calls) == sum(event.kind == "compute" for event in events) == assignment.n_partitions
    assert all(calls[p].target == b for p, b in zip(assignment.partition, assignment.target, strict=True))
    for tensor, reader in zip(problem.read_tensor, problem.read_unit, strict=True):
        maker = problem.producer[tensor]
        if maker != OUTSIDE and assignment.partition[maker] != assignment.partition[reader]:
            assert calls[assignment.partition[maker]].end <= calls[assignment.partition[reader]].start
    for event in events:
        if event.kind == "handoff":
            assert calls[event.source].end <= event.start <= event.end <= calls[event.partition].start


@given(plans(max_units=14))
@laws
def test_resources_keep_their_order_and_their_slots_when_a_plan_is_simulated(
    plan: tuple[Problem, Assignment],
) -> None:
    problem, assignment = plan
    simulation = simulate(problem, assignment)
    on: dict[Resource, list[Event]] = {}
    for event in simulation.events:
        for resource in event.resources:
            on.setdefault(resource, []).append(event)
    assert set(on) == set(simulation.loads)
    for resource, events in on.items():
        slots = problem.slots[resource.number] if resource.kind == "silicon" else 1
        assert simulation.loads[resource] == sum(event.end - event.start for event in events) / slots
        for slot in {event.slot for event in events}:
            mine = [event for event in events if event.slot == slot]
            assert all(one.end <= other.start for one, other in pairwise(mine))
        if slots == 1:
            queue = sorted(events, key=lambda event: (event.partition, event.source, event.tensor))
            assert all(one.end <= other.start for one, other in pairwise(queue))
    assert simulation.throughput == max(simulation.loads.values(), default=0)
    assert all(event.slot < problem.slots[problem.silicon[event.target]] for event in simulation.events)


@given(plans(max_units=14))
@laws
def test_plan_does_not_wait_for_nothing_when_it_is_simulated(plan: tuple[Problem, Assignment]) -> None:
    """Each event starts at 0 or at the moment when another one ends."""
    events = simulate(*plan).events
    ends = {0.0, *(event.end for event in events)}
    assert all(event.start in ends for event in events)


@given(plans(max_units=14))
@laws
def test_memory_is_never_above_the_peak_nor_below_the_weights_when_time_goes_by(
    plan: tuple[Problem, Assignment],
) -> None:
    problem, assignment = plan
    simulation = simulate(problem, assignment)
    units = np.arange(problem.n_units)
    weights = problem.weight_bytes[units, assignment.target]
    for pool, use in enumerate(simulation.memory):
        fixed = weights[problem.pool[assignment.target] == pool].sum()
        assert use.times[0] == 0
        assert (np.diff(use.times) > 0).all()
        assert use.n_bytes.min() >= fixed
        assert use.n_bytes.max() == use.peak
        assert use.n_bytes[-1] == fixed, "at the end only weights are left"
        assert use.times[-1] <= simulation.latency


@given(plans(max_units=14))
@laws
def test_running_calls_have_their_bytes_when_memory_is_looked_at(plan: tuple[Problem, Assignment]) -> None:
    """Whoever runs has workspace, what it reads and what it makes in its pool, beside the weights."""
    problem, assignment = plan
    simulation = simulate(problem, assignment)
    calls = {event.partition: event for event in simulation.events if event.kind == "compute"}
    for p, call in calls.items():
        if call.end == call.start:
            continue
        pool = problem.pool[call.target]
        members = np.flatnonzero(assignment.partition == p)
        there = {int(x) for x in np.flatnonzero(np.isin(problem.producer, members))}
        there |= {int(x) for x in problem.read_tensor[np.isin(problem.read_unit, members)]}
        least = problem.workspace_bytes[members, call.target].max() + sum(
            problem.tensor_bytes[x] for x in there
        )
        least += problem.weight_bytes[np.arange(problem.n_units), assignment.target][
            problem.pool[assignment.target] == pool
        ].sum()
        use = simulation.memory[pool]
        during = (use.times < call.end) & (np.append(use.times[1:], np.inf) > call.start)
        assert use.n_bytes[during].min() >= least


@given(plans(max_units=10), st.integers(0, 10**6))
@laws
def test_simulated_latency_never_falls_when_one_call_takes_longer(
    plan: tuple[Problem, Assignment], seed: int
) -> None:
    problem, assignment = plan
    unit = seed % problem.n_units
    time = problem.time.copy()
    time[unit] += 1 + seed % 3
    assert simulate(problem.replace(time=time), assignment).latency >= simulate(problem, assignment).latency


def test_numbers_of_neighbours_do_not_matter_when_they_share_nothing() -> None:
    """Two chains on two silicons, interleaved in any way, are one plan."""
    problem = Problem(
        time=np.arange(12.0).reshape(6, 2),
        silicon=[0, 1],
        pool=[0, 1],
        producer=np.arange(6),
        read_tensor=[0, 1, 3, 4],
        read_unit=[1, 2, 4, 5],
        tensor_bytes=np.arange(6),
    )
    target = np.array([0, 0, 0, 1, 1, 1], np.int32)
    one = simulate(problem, Assignment(target, np.array([0, 1, 2, 3, 4, 5], np.int32)))
    other = simulate(problem, Assignment(target, np.array([1, 3, 5, 0, 2, 4], np.int32)))
    assert (one.latency, one.throughput, one.energy) == (other.latency, other.throughput, other.energy)
    assert one.peaks.tolist() == other.peaks.tolist()


def test_nothing_happens_when_a_plan_cannot_be_carried_out() -> None:
    problem = Problem(
        time=np.ones((2, 1)), silicon=[0], pool=[0], producer=[0], read_tensor=[0], read_unit=[1]
    )
    against = simulate(problem, Assignment(np.zeros(2, np.int32), np.array([1, 0], np.int32)))
    assert (against.events, against.loads) == ((), {})
    assert (against.latency, against.throughput, against.energy) == (np.inf, np.inf, np.inf)
    assert against.peaks.tolist() == [np.inf]
    assert against.violations


def test_gantt_has_a_lane_for_each_slot_when_calls_run_side_by_side() -> None:
    problem = Problem(
        time=np.full((3, 1), 10.0),
        silicon=[0],
        pool=[0],
        producer=[],
        read_tensor=[],
        read_unit=[],
        slots=[2],
    )
    order = np.arange(3, dtype=np.int32)
    events = simulate(problem, Assignment(np.zeros(3, np.int32), order)).events
    assert [(event.slot, event.start, event.end) for event in events] == [(0, 0, 10), (1, 0, 10), (0, 10, 20)]


def test_simulator_takes_one_step_per_event_when_there_are_ten_thousand_units() -> None:
    rng = np.random.default_rng(0)
    problem = random_problem(rng, 10_000, 4, shape="layered", start="unit", overlap=True, send_port=True)
    assignment = random_assignment(rng, problem)
    simulation = simulate(problem, assignment)
    assert sum(event.kind == "compute" for event in simulation.events) == 10_000
    assert simulation.latency == check(problem, assignment).values.latency


def test_simulator_shares_no_code_with_what_it_judges() -> None:
    folder = Path(str(hal.planning.__file__)).parent
    files = sorted(folder.glob("simulate*.py"))
    imported = {
        node.module
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hal.")
    }
    own = {f"hal.planning.{file.stem}" for file in files}
    assert len(files) > 1
    assert imported <= own | {"hal.planning", "hal.planning.problem", "hal.planning.violations"}
