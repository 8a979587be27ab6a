"""Sums: the dynamic program against brute force, against Viterbi on chains, and its bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hal.planning.evaluate import evaluate
from hal.planning.flat import flat
from hal.planning.orders import lanes, narrow
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget
from hal.planning.serial import applies, serial
from tests.unit.brute_force import TooMany, optima
from tests.unit.planning_problems import SHAPES, problems, random_problem

#: Seconds that are never spent.
PLENTY = 500.0


def solved(problem: Problem) -> Best:
    best = Best(problem)
    serial(problem, best, Budget(PLENTY))
    return best


def machine(
    rng: np.random.Generator, edges: list[tuple[int, int]], n: int, t: int, **fields: object
) -> Problem:
    """Units of like size on targets of one silicon, with calls and handoffs that are worth looking at."""
    drawn = {
        "time": rng.uniform(20, 100, (n, t)),
        "silicon": np.zeros(t),
        "pool": np.zeros(t),
        "producer": np.arange(n),
        "read_tensor": [a for a, _ in edges],
        "read_unit": [b for _, b in edges],
        "transfer": rng.uniform(0, 20, (n, t, t)) * (1 - np.eye(t)),
        "call": rng.uniform(5, 15, t),
    }
    return Problem(**{**drawn, **fields})  # type: ignore[arg-type]


def test_serial_finds_what_viterbi_finds_when_units_form_a_chain() -> None:
    rng = np.random.default_rng(5)
    n, t = 200, 6
    problem = machine(rng, [(at, at + 1) for at in range(n - 1)], n, t)

    cost = problem.call + problem.time[0]
    for unit in range(1, n):
        change = cost[:, None] + problem.transfer[unit - 1] + problem.call[None, :] * (1 - np.eye(t))
        cost = change.min(axis=0) + problem.time[unit]

    best = solved(problem)

    assert best.objective == pytest.approx(cost.min(), rel=1e-12)
    assert best.is_optimal


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(SHAPES),
    st.sampled_from(("latency", "throughput", "energy")),
    st.sampled_from(("partition", "edge", "target")),
)
def test_serial_agrees_with_brute_force_when_nothing_is_limited(
    seed: int, n: int, t: int, shape: str, objective: str, charge: str
) -> None:
    one: dict[str, Any] = {} if objective == "energy" else {"silicon": np.zeros(t), "slots": [1]}
    problem = random_problem(
        np.random.default_rng(seed),
        n,
        t,
        shape=shape,
        start="partition",
        objective=objective,
        charge=charge,
        **one,
    )
    least = least_of(problem)

    best = solved(problem)

    assert best.bound <= least * (1 + 1e-9)
    # A late unit without inputs may join a partition that is closed: then the plan is a good one, unproven.
    assert best.objective >= least * (1 - 1e-9)
    if best.is_optimal:
        assert best.objective == pytest.approx(least)


def least_of(problem: Problem) -> float:
    try:
        least, _ = optima(problem, 200_000)
    except TooMany:
        assume(False)
    return least[problem.objective].value


@settings(max_examples=60, deadline=None)
@given(problems(6, 3, start="partition", objective="energy"))
def test_serial_proves_no_more_than_the_optimum_when_there_are_limits(problem: Problem) -> None:
    least = least_of(problem)

    best = solved(problem)

    assert best.bound <= least * (1 + 1e-9) + 1e-9
    assert best.objective >= least * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_serial_is_proven_when_branches_are_short(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges, last = [], 0
    for _ in range(8):
        tips = [last + 1, last + 3]
        edges += [
            (last, tips[0]),
            (tips[0], last + 2),
            (last, tips[1]),
            (last + 2, last + 4),
            (tips[1], last + 4),
        ]
        last += 4

    best = solved(machine(rng, edges, last + 1, 4))

    assert best.is_optimal
    assert best.proposal is not None
    assert best.proposal.objective == pytest.approx(best.bound)


def test_serial_joins_branches_in_one_call_when_each_changes_target_alike() -> None:
    # 0 -> (1, 2), 1 -> 3, 2 -> 4, (3, 4) -> 5: units 0, 1, 2 belong on target 0, the others on target 1.
    edges = [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 5)]
    time = np.array([[1, 9], [1, 9], [1, 9], [9, 1], [9, 1], [9, 1]], float)
    problem = machine(np.random.default_rng(0), edges, 6, 2).replace(
        time=time, call=[3.0, 3.0], transfer=np.zeros((6, 2, 2))
    )

    best = solved(problem)

    assert best.objective == 12
    assert best.proposal is not None
    assert best.proposal.assignment.n_partitions == 2
    assert best.is_optimal


def test_serial_keeps_the_error_budget_when_fast_targets_err() -> None:
    rng = np.random.default_rng(3)
    n = 60
    problem = machine(rng, [(at, at + 1) for at in range(n - 1)], n, 2)
    error = np.stack([np.zeros(n), rng.uniform(0, 1, n)], axis=1)
    time = np.stack([problem.time[:, 0], 0.5 * problem.time[:, 0]], axis=1)
    problem = problem.replace(time=time, error=error, max_error=0.3 * float(error.sum()))

    best = solved(problem)

    assert best.proposal is not None
    placed = best.proposal.assignment.target
    assert error[np.arange(n), placed].sum() <= problem.max_error
    assert 0 < placed.sum() < n
    assert best.gap < 0.1


def test_serial_keeps_the_number_of_partitions_when_it_is_limited() -> None:
    n = 40
    problem = machine(np.random.default_rng(4), [(at, at + 1) for at in range(n - 1)], n, 3)
    free = solved(problem)
    assert free.proposal is not None
    limit = free.proposal.assignment.n_partitions // 2

    best = solved(problem.replace(max_partitions=limit))

    assert best.proposal is not None
    assert best.proposal.assignment.n_partitions <= limit
    assert best.bound <= best.objective * (1 + 1e-9)


def test_serial_proves_nothing_when_targets_run_side_by_side() -> None:
    problem = machine(np.random.default_rng(1), [(0, 1), (0, 2)], 3, 2, silicon=np.arange(2))

    best = solved(problem)

    assert applies(problem)
    assert best.proposal is not None
    assert best.bound == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"start": "unit"}, False),
        ({"objective": "memory"}, False),
        ({"objective": "throughput"}, True),
        ({"objective": "throughput", "slots": [0]}, False),
        ({"objective": "throughput", "silicon": np.arange(2)}, False),
        ({"objective": "energy", "silicon": np.arange(2)}, True),
    ],
)
def test_serial_applies_when_the_objective_is_a_sum(fields: dict[str, object], expected: bool) -> None:
    assert applies(machine(np.random.default_rng(0), [(0, 1)], 2, 2, **fields)) is expected


def test_serial_leaves_a_problem_alone_when_units_start_alone() -> None:
    best = solved(machine(np.random.default_rng(0), [(0, 1)], 2, 2, start="unit"))

    assert best.proposal is None


@settings(max_examples=40, deadline=None)
@given(problems(10, 2, start="partition"), st.booleans())
def test_narrow_is_a_topological_order_when_sources_come_first_or_late(problem: Problem, first: bool) -> None:
    order = narrow(flat(problem), first)

    place = np.empty(problem.n_units, int)
    place[order] = np.arange(problem.n_units)
    made = problem.producer[problem.read_tensor]
    inner = made >= 0
    assert sorted(order) == list(range(problem.n_units))
    assert (place[made[inner]] < place[problem.read_unit[inner]]).all()


@settings(max_examples=40, deadline=None)
@given(problems(10, 2, start="partition"))
def test_lanes_hold_one_tensor_at_a_time_when_tensors_are_laid_out(problem: Problem) -> None:
    f = flat(problem)
    order = narrow(f, False)
    counts = np.bincount(problem.read_tensor, minlength=problem.n_tensors)
    laid = lanes(f, order, problem.same_device, ((problem.producer >= 0) & (counts > 0)).astype(np.int32))

    place = np.empty(problem.n_units, int)
    place[order] = np.arange(problem.n_units)
    for lane in range(laid.n_lanes):
        spans = sorted((place[problem.producer[x]], laid.last[x]) for x in np.flatnonzero(laid.lane == lane))
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_serial_gives_the_same_plan_when_it_is_run_twice() -> None:
    rng = np.random.default_rng(9)
    problem = random_problem(rng, 30, 3, shape="series_parallel", start="partition", objective="energy")

    first, second = solved(problem), solved(problem)

    assert first.proposal is not None
    assert second.proposal is not None
    assert np.array_equal(first.proposal.assignment.target, second.proposal.assignment.target)
    assert evaluate(problem, first.proposal.assignment).energy == first.objective
