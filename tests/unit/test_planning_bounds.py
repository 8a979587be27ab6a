"""Lower bounds: below every optimum, and what they say where it can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hal.planning import bounds
from hal.planning.domains import domains
from hal.planning.exhaustive import search
from hal.planning.forest_bound import forest_bound
from hal.planning.loads_bound import load_with_transfers, loads_bound
from hal.planning.milp_additive import applies as adds_up
from hal.planning.milp_additive import milp_additive
from hal.planning.problem import OBJECTIVES, Problem
from hal.planning.search import Best, Budget
from tests.unit.planning_problems import SHAPES, random_problem

NO = np.inf


def chain(time: object, **fields: object) -> Problem:
    """Units one after the other, targets on silicon of their own."""
    times = np.array(time, float)
    n, t = times.shape
    return Problem(
        **{
            "time": times,
            "silicon": np.arange(t),
            "pool": np.arange(t),
            "producer": np.arange(n),
            "read_tensor": np.arange(n - 1),
            "read_unit": np.arange(1, n),
            **fields,
        }
    )


def between(n: int, t: int, value: float) -> np.ndarray:
    """Handoffs of one length between any two targets."""
    transfer = np.full((n, t, t), value)
    transfer[:, np.arange(t), np.arange(t)] = 0
    return transfer


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bounds_are_below_the_optimum_when_problems_are_random(objective: str) -> None:
    compared = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        problem = random_problem(
            rng,
            int(rng.integers(2, 7)),
            int(rng.integers(1, 4)),
            shape=SHAPES[seed % len(SHAPES)],
            limits=0.3,
            objective=objective,
        )
        exact = Best(problem)
        is_done, least = search(problem, exact, Budget(300))
        assert is_done
        if np.isinf(least):
            continue
        compared += 1
        for prove in (bounds.prove, loads_bound, forest_bound, milp_additive):
            if prove is milp_additive and not adds_up(problem):
                continue
            best = Best(problem)
            prove(problem, best, Budget(300))
            assert best.bound <= least * (1 + 1e-9), (seed, prove.__name__, best.bound_source)
    assert compared > 20


def test_critical_path_is_the_latency_when_a_chain_changes_devices() -> None:
    problem = chain([[1, 9], [9, 1], [1, 9]], transfer=between(3, 2, 2.0))
    assert bounds.critical_path(problem) == 1 + 2 + 1 + 2 + 1
    assert bounds.critical_path(problem.replace(transfer=between(3, 2, 100.0))) == 1 + 9 + 1


def test_critical_path_counts_calls_sends_and_receives_when_a_unit_must_be_elsewhere() -> None:
    problem = chain(
        [[1, NO], [NO, 1]],
        call=[10, 20],
        send=np.full((2, 2), 100.0),
        receive=np.full((2, 2), 1000.0),
        transfer=between(2, 2, 10000.0),
    )
    assert bounds.critical_path(problem) == 10 + 1 + 100 + 10000 + 20 + 1000 + 1


def test_critical_path_leaves_the_receiving_out_when_an_earlier_partition_may_have_paid() -> None:
    problem = chain(
        [[1, NO], [NO, 1]],
        receive=np.full((2, 2), 1000.0),
        transfer=between(2, 2, 10.0),
        charge="target",
        slots=[1, 2],
    )
    assert bounds.critical_path(problem) == 1 + 10 + 1
    assert bounds.critical_path(problem.replace(slots=[1, 1])) == 1 + 10 + 1000 + 1


def test_load_is_the_even_share_when_units_can_be_anywhere() -> None:
    problem = chain(np.full((40, 2), 3.0), objective="throughput")
    value, is_forced = bounds.load(problem)
    assert value == pytest.approx(60)
    assert not is_forced


def test_load_balances_unlike_silicon_when_one_is_quicker() -> None:
    problem = chain(np.tile([1.0, 3.0], (40, 1)), objective="throughput")
    value, _ = bounds.load(problem)
    assert 0.99 * 30 < value <= 30 * (1 + 1e-9)


def test_load_says_that_memory_forces_it_when_the_quick_device_is_small() -> None:
    problem = chain(
        np.tile([1.0, 100.0], (40, 1)),
        objective="throughput",
        weight_bytes=np.full((40, 2), 10),
        capacity=[200, NO],
    )
    free, _ = bounds.load(problem.replace(capacity=[NO, NO]))
    value, is_forced = bounds.load(problem)
    assert is_forced
    assert free <= 40
    # At least 20 units lie on the slow one.
    assert 0.95 * 2000 < value <= 2000 * (1 + 1e-9)


def test_load_is_nothing_when_a_silicon_runs_any_number_at_once() -> None:
    assert bounds.load(chain(np.ones((3, 1)), slots=[0]))[0] == 0
    assert bounds.largest_unit(chain(np.ones((3, 1)), slots=[0])) == 0


def test_largest_unit_takes_groups_together_when_they_share_a_target() -> None:
    problem = chain([[4, 6], [4, 6], [7, 7]], objective="throughput")
    assert bounds.largest_unit(problem) == 7
    assert bounds.largest_unit(problem.replace(same_device=[0, 0, -1])) == 8


def test_load_with_transfers_counts_links_when_tensors_must_cross() -> None:
    problem = chain(
        [[1, NO], [NO, 1], [1, NO]],
        objective="throughput",
        transfer=between(3, 2, 50.0),
        link=[[-1, 0], [0, -1]],
    )
    assert load_with_transfers(problem, 60) == pytest.approx(100)
    assert load_with_transfers(problem.replace(overlap=False), 60) == pytest.approx(52)


def test_least_energy_takes_each_unit_at_its_best_when_calls_cost_too() -> None:
    problem = chain(np.ones((2, 2)), objective="energy", energy=[[3, 5], [7, 2]], power=[1, 1], call=[10, 20])
    assert bounds.least_energy(problem) == 5 + 10
    assert bounds.least_energy(problem.replace(start="unit")) == 13 + 17


def test_weights_count_what_a_unit_holds_when_it_runs() -> None:
    problem = chain(
        np.ones((2, 1)),
        objective="memory",
        weight_bytes=[[100], [200]],
        workspace_bytes=[[7], [3]],
        tensor_bytes=[1000, 10000],
    )
    assert bounds.weights(problem) == 300 + 3 + 1000 + 10000


def test_live_counts_tensors_across_a_unit_when_they_are_read_behind_it() -> None:
    # 0 makes what 2 reads; 1 lies between and makes what 2 reads too.
    problem = Problem(
        time=np.ones((3, 1)),
        silicon=[0],
        pool=[0],
        producer=[0, 0, 1, 2],
        read_tensor=[0, 1, 2],
        read_unit=[2, 1, 2],
        tensor_bytes=[500, 20, 3, 1],
        objective="memory",
    )
    # While 1 runs: the long one, what it reads and what it makes.
    assert bounds.weights(problem) == 500 + 20
    assert bounds.live(problem) == 500 + 20 + 3


def test_prove_says_nothing_when_a_unit_has_no_target() -> None:
    problem = chain([[NO, NO], [1, 1]])
    best = Best(problem)
    bounds.prove(problem, best, Budget(60))
    assert best.bound == 0


def test_domains_strike_out_targets_when_weights_or_errors_cannot_fit() -> None:
    problem = chain(
        np.ones((3, 2)),
        weight_bytes=[[60, 60], [50, 50], [10, 10]],
        capacity=[100, 70],
        error=[[0, 0], [0, 0], [5, 0]],
        max_error=4,
    )
    assert domains(problem).tolist() == [[True, True], [True, True], [False, True]]
    # With the third on the second pool for certain, the first has room on the first only, and so on.
    tight = problem.replace(capacity=[100, 60])
    assert domains(tight).tolist() == [[True, False], [False, True], [False, True]]


@pytest.mark.parametrize("start", ["unit", "partition"])
def test_forest_bound_reaches_the_linear_program_when_the_graph_is_a_chain(start: str) -> None:
    rng = np.random.default_rng(0)
    n, t = 60, 3
    problem = chain(
        rng.uniform(1, 9, (n, t)),
        objective="throughput",
        transfer=between(n, t, 2.0),
        overlap=False,
        call=[1, 1, 1],
        start=start,
    )
    best = Best(problem)
    forest_bound(problem, best, Budget(300))
    exact = load_with_transfers(problem, 300)
    assert exact * 0.97 <= best.bound <= exact * (1 + 1e-6)
    assert best.bound > 1.05 * bounds.load(problem)[0]


def test_forest_bound_counts_ports_and_memory_when_they_bind() -> None:
    rng = np.random.default_rng(1)
    n = 40
    problem = chain(
        np.tile([1.0, 20.0], (n, 1)),
        objective="throughput",
        transfer=between(n, 2, 5.0) * rng.uniform(1, 2, (n, 1, 1)),
        receive_port=True,
        weight_bytes=np.full((n, 2), 10),
        capacity=[200, NO],
    )
    best = Best(problem)
    forest_bound(problem, best, Budget(300))
    assert 0.95 * 400 <= best.bound <= 400 * (1 + 1e-9)
