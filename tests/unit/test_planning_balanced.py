"""Even loads: close to the bound where units are many, within capacity, and only where it may be."""

from __future__ import annotations

import numpy as np
import pytest

from hal.planning.balanced import applies, balanced
from hal.planning.bounds import load
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget
from hal.planning.serial import serial
from tests.unit.brute_force import optima
from tests.unit.planning_problems import random_problem

#: Seconds that are never spent.
PLENTY = 500.0


def pipeline(n: int, t: int, seed: int = 0, **fields: object) -> Problem:
    """A chain of units whose times have nothing in common between targets."""
    rng = np.random.default_rng(seed)
    drawn = {
        "time": rng.integers(1, 10, (n, t)).astype(np.float64),
        "silicon": np.arange(t),
        "pool": np.arange(t),
        "producer": np.arange(n),
        "read_tensor": np.arange(n - 1),
        "read_unit": np.arange(1, n),
        "objective": "throughput",
        **fields,
    }
    return Problem(**drawn)  # type: ignore[arg-type]  # drawn by name


@pytest.mark.parametrize(("n", "t"), [(500, 2), (2_000, 4), (5_000, 8)])
def test_loads_are_near_the_bound_when_units_are_many(n: int, t: int) -> None:
    problem = pipeline(n, t)
    best = Best(problem)
    balanced(problem, best, Budget(PLENTY))
    bound, _ = load(problem)
    assert bound <= best.objective <= 1.005 * bound


def test_weights_keep_the_capacity_when_the_quickest_target_is_small() -> None:
    n, t = 600, 3
    time = np.random.default_rng(1).integers(1, 10, (n, t)) * np.array([0.1, 1.0, 1.0])
    room = {"weight_bytes": np.ones((n, t), np.int64), "capacity": np.array([20.0, np.inf, np.inf])}
    best = Best(pipeline(n, t, time=time, **room))
    balanced(best.problem, best, Budget(PLENTY))
    assert best.proposal is not None
    # Its time is best used by as many units as it has room for.
    assert (best.proposal.assignment.target == 0).sum() == 20


def test_nothing_is_offered_when_a_unit_finds_room_nowhere() -> None:
    full = {"weight_bytes": np.ones((6, 2), np.int64), "capacity": np.array([2.0, 2.0])}
    best = Best(pipeline(6, 2, **full))
    balanced(best.problem, best, Budget(PLENTY))
    assert best.proposal is None


def test_values_are_no_better_than_the_best_of_all_when_problems_are_small() -> None:
    n_found = 0
    for seed in range(30):
        problem = random_problem(np.random.default_rng(seed), 5, 2, objective="throughput")
        if not applies(problem):
            continue
        best = Best(problem)
        balanced(problem, best, Budget(PLENTY))
        if best.proposal is not None:
            n_found += 1
            assert best.objective >= optima(problem)[0]["throughput"].value * (1 - 1e-9)
    assert n_found


def test_it_does_not_apply_when_partitions_are_counted_or_silicon_is_one() -> None:
    assert applies(pipeline(10, 2))
    assert not applies(pipeline(10, 2, partitions_per_target=np.ones(2, np.int64)))
    assert not applies(pipeline(10, 2, max_partitions=3))
    assert not applies(pipeline(10, 2, silicon=np.zeros(2, np.int64)))
    assert not applies(pipeline(10, 2, objective="latency"))


def test_serial_begins_no_sweep_when_it_would_take_longer_than_there_is() -> None:
    problem = pipeline(2_000, 4, objective="latency")
    best = Best(problem)
    serial(problem, best, Budget(0.001, now=lambda: 0.0))
    assert best.proposal is None
    serial(problem, best, Budget(PLENTY, now=lambda: 0.0))
    assert best.proposal is not None
