"""The portfolio: what it hands back, in which order solvers run, and the solvers that have no other test."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import hal.planning
from hal.errors import InternalError
from hal.planning.additive_local import additive_local
from hal.planning.check import check
from hal.planning.exhaustive import MOST_UNITS, exhaustive, search
from hal.planning.fitting import fitting, lean_order
from hal.planning.milp_additive import milp_additive
from hal.planning.portfolio import TURNS, judged, solve
from hal.planning.problem import OBJECTIVES, Assignment, Problem
from hal.planning.search import Best, Budget
from hal.planning.segments import segments
from hal.planning.simulate import simulate
from hal.planning.single import single
from hal.planning.solution import Finalists
from tests.unit.planning_problems import random_problem

NO = np.inf
#: Solvers that the portfolio runs by name, whatever the objective.
ALWAYS = {"single", "greedy", "exhaustive", "fitting", "bounds", "portfolio", "infeasible"}


class Steps:
    """A clock that goes on by one second each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def layered(n: int, t: int, seed: int = 0, **fields: object) -> Problem:
    drawn = {"shape": "layered", "allowed": 1.0, **fields}
    return random_problem(np.random.default_rng(seed), n, t, **drawn)  # type: ignore[arg-type]


def test_every_solver_has_its_turn_when_it_is_in_the_package() -> None:
    found = set()
    for module in pkgutil.iter_modules(hal.planning.__path__):
        loaded = importlib.import_module(f"hal.planning.{module.name}")
        function = getattr(loaded, module.name, None)
        if function is None or inspect.isclass(function):
            continue
        names = list(inspect.signature(function).parameters)
        if names == ["problem", "best", "budget", "seed"]:
            found.add(module.name)
    assert found - ALWAYS == {turn.module for turn in TURNS}


def test_every_objective_and_start_has_a_solver_for_large_problems() -> None:
    for objective in OBJECTIVES:
        for start in ("unit", "partition"):
            fit = [turn for turn in TURNS if objective in turn.objectives and start in turn.starts]
            assert any(turn.is_linear for turn in fit) or objective == "memory", (objective, start)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_solve_hands_back_distinct_plans_and_all_single_targets_when_all_fit(objective: str) -> None:
    problem = layered(40, 4, objective=objective)
    solution = solve(problem, budget_s=0.3, finalists=2)
    values = [plan.objective for plan in solution.proposals]
    assert values == sorted(values)
    keys = {
        plan.assignment.target.tobytes() + plan.assignment.partition.tobytes() for plan in solution.proposals
    }
    assert len(keys) == len(values)
    alone = {
        int(plan.assignment.target[0]) for plan in solution.proposals if len(set(plan.assignment.target)) == 1
    }
    assert alone == {0, 1, 2, 3}
    for plan in solution.proposals:
        assert simulate(problem, plan.assignment).objective(objective) == pytest.approx(plan.objective)
    assert solution.best is solution.proposals[0]
    assert 0 <= solution.gap <= 1
    assert solution.bound <= solution.best.objective
    assert solution.bound_source


def test_solve_says_what_each_solver_did_when_it_is_done() -> None:
    solution = solve(layered(60, 3, objective="latency", start="unit"), budget_s=0.5)
    names = [run.name for run in solution.runs]
    assert names[:3] == ["single", "greedy", "bounds"]
    assert "list_scheduling" in names
    objectives = [run.objective for run in solution.runs]
    assert objectives == sorted(objectives, reverse=True)
    bounds = [run.bound for run in solution.runs]
    assert bounds == sorted(bounds)
    assert set(solution.seconds) == set(names)


def test_solve_has_the_single_targets_when_there_is_no_time() -> None:
    problem = layered(60, 3, objective="latency")
    solution = solve(problem, budget_s=0.0)
    assert len({plan.solver for plan in solution.proposals if plan.solver.startswith("only ")}) == 3


def test_solve_claims_the_optimum_only_when_it_is_proven() -> None:
    tiny = layered(6, 2, objective="latency")
    solution = solve(tiny, budget_s=300)
    assert solution.is_optimal
    assert solution.bound == solution.best.objective
    large = layered(60, 3, objective="latency", start="unit", send_port=True, receive_port=True)
    solution = solve(large, budget_s=0.3)
    assert solution.is_optimal == (solution.best.objective <= solution.bound * (1 + 1e-9))


def test_solve_runs_only_near_linear_solvers_when_the_problem_is_large() -> None:
    problem = layered(8000, 3, objective="latency", start="partition", limits=0.0)
    names = {run.name for run in solve(problem, budget_s=1.0).runs}
    linear = {turn.module for turn in TURNS if turn.is_linear}
    assert names - linear <= {"single", "greedy", "bounds", "fitting"}


def test_judged_raises_when_the_simulator_disagrees() -> None:
    problem = layered(6, 2, objective="latency")
    best = Finalists(problem)
    single(problem, best, Budget(300))
    slower = problem.replace(time=problem.time + 1)
    with pytest.raises(InternalError, match=r"that the simulator gives .* it breaks: nothing; report it"):
        list(judged(slower, best, 8))
    smaller = problem.replace(weight_bytes=problem.weight_bytes + 1, capacity=np.zeros(problem.n_pools))
    with pytest.raises(InternalError, match="it breaks: pool 0 needs"):
        list(judged(smaller, best, 8))


def test_finalists_keep_the_best_of_each_solver_when_one_offers_many() -> None:
    problem = Problem(
        time=[[1, 2, 3, 4, 5]],
        silicon=range(5),
        pool=range(5),
        producer=[0],
        read_tensor=[],
        read_unit=[],
    )
    best = Finalists(problem)
    for target in (4, 3, 2, 1):
        best.offer(Assignment(np.array([target], np.int32), np.zeros(1, np.int32)), "many")
    best.offer(Assignment(np.array([4], np.int32), np.zeros(1, np.int32)), "only 4")
    found = best.distinct(8, "only ")
    assert [(value, name) for value, name, _ in found] == [(2, "many"), (3, "many"), (5, "only 4")]
    assert [name for _, name, _ in best.distinct(1, "only ")] == ["many", "only 4"]


def test_finalists_remember_the_nearest_plan_when_all_break_a_limit() -> None:
    problem = Problem(
        time=[[1, 1]],
        silicon=[0, 1],
        pool=[0, 1],
        producer=[0],
        read_tensor=[],
        read_unit=[],
        weight_bytes=[[11, 90]],
        capacity=[10, 10],
    )
    best = Finalists(problem)
    for target in (1, 0, 1):
        best.offer(Assignment(np.array([target], np.int32), np.zeros(1, np.int32)), "test")
    assert best.rejected is not None
    assert best.rejected.violations[0].amount == 11


def test_search_tells_that_it_was_cut_short_when_the_budget_ends() -> None:
    problem = layered(MOST_UNITS, 3, objective="memory", limits=0.0, capacity=np.full(3, NO), pool=[0, 1, 2])
    best = Best(problem)
    is_done, _ = search(problem, best, Budget(0.0))
    assert not is_done
    assert best.bound == 0


def test_search_finds_the_least_excess_when_bytes_of_pools_are_free() -> None:
    problem = Problem(
        time=np.ones((2, 1)),
        silicon=[0],
        pool=[0],
        producer=[0, 1],
        read_tensor=[0],
        read_unit=[1],
        weight_bytes=[[5], [5]],
        tensor_bytes=[7, 0],
        objective="memory",
    )
    assert search(problem, Best(problem), Budget(300), free=np.array([10.0])) == (True, 7)
    assert search(problem, Best(problem), Budget(300), free=np.array([100.0])) == (True, 0)


def test_exhaustive_leaves_no_bound_when_there_is_no_plan() -> None:
    problem = Problem(
        time=np.ones((2, 1)),
        silicon=[0],
        pool=[0],
        producer=[0, 1],
        read_tensor=[0],
        read_unit=[1],
        tensor_bytes=[7, 0],
        capacity=[6],
    )
    best = Best(problem)
    exhaustive(problem, best, Budget(300))
    assert best.proposal is None
    assert best.bound == 0


@pytest.mark.parametrize("objective", ["energy", "latency"])
def test_milp_additive_proves_the_optimum_when_units_start_alone(objective: str) -> None:
    for seed in range(10):
        problem = layered(
            10,
            2,
            seed,
            objective=objective,
            start="unit",
            charge="partition",
            silicon=[0, 0],
            slots=None,
            link=None,
            limits=0.2,
        )
        exact, best = Best(problem), Best(problem)
        exhaustive(problem, exact, Budget(300))
        milp_additive(problem, best, Budget(300))
        assert best.bound <= exact.objective * (1 + 1e-9)
        if exact.proposal is not None and np.isinf(problem.capacity).all():
            assert best.is_optimal
            assert best.objective == pytest.approx(exact.objective)


def test_milp_additive_has_a_bound_when_memory_is_the_objective() -> None:
    problem = Problem(
        time=np.ones((3, 2)),
        silicon=[0, 1],
        pool=[0, 1],
        producer=[0, 1, 2],
        read_tensor=[0, 1],
        read_unit=[1, 2],
        weight_bytes=[[10, 90], [90, 10], [10, 90]],
        tensor_bytes=[3, 3, 0],
        start="unit",
        objective="memory",
    )
    best = Best(problem)
    milp_additive(problem, best, Budget(300))
    assert best.proposal is not None
    assert best.proposal.assignment.target.tolist() == [0, 1, 0]
    assert 30 + 6 <= best.bound <= best.objective


def test_additive_local_improves_a_plan_and_keeps_limits_when_costs_add_up() -> None:
    rng = np.random.default_rng(0)
    n, t = 200, 3
    weight = rng.integers(1, 10, (n, t))
    problem = layered(
        n,
        t,
        objective="energy",
        start="unit",
        energy=rng.integers(1, 100, (n, t)),
        weight_bytes=weight,
        tensor_bytes=None,
        workspace_bytes=None,
        pool=[0, 1, 2],
        capacity=np.full(t, weight.max(axis=1).sum() * 0.5),
        error=rng.integers(0, 3, (n, t)),
        max_error=float(1.1 * n),
    )
    start, best = Best(problem), Best(problem)
    fitting(problem, start, Budget(300))
    assert start.proposal is not None
    best.offer(start.proposal.assignment, "fitting")
    additive_local(problem, best, Budget(130, Steps()), seed=1)
    assert best.objective < 0.8 * start.objective
    again = Best(problem)
    again.offer(start.proposal.assignment, "fitting")
    additive_local(problem, again, Budget(130, Steps()), seed=1)
    assert again.objective == best.objective


def test_fitting_finds_a_plan_when_weights_fill_the_pools() -> None:
    rng = np.random.default_rng(0)
    weight = np.repeat(rng.integers(1, 100, (300, 1)), 4, axis=1)
    problem = layered(
        300,
        4,
        objective="latency",
        pool=range(4),
        weight_bytes=weight,
        workspace_bytes=None,
        capacity=np.full(4, weight[:, 0].sum() * 0.28),
        slots=None,
    )
    best = Best(problem)
    fitting(problem, best, Budget(300))
    assert best.proposal is not None
    assert not check(problem, best.proposal.assignment).violations


def test_lean_order_frees_tensors_early_when_branches_wait_for_each_other() -> None:
    # Ten branches of two units each; the first units make 100 bytes, the second shrink them to 1.
    n = 20
    problem = Problem(
        time=np.ones((n + 1, 1)),
        silicon=[0],
        pool=[0],
        producer=np.arange(n + 1),
        read_tensor=np.arange(n),
        read_unit=[*range(10, 20), *([n] * 10)],
        tensor_bytes=[100] * 10 + [1] * 10 + [0],
        start="unit",
        objective="memory",
    )
    lean = Best(problem)
    fitting(problem, lean, Budget(300))
    assert sorted(lean_order(problem).tolist()) == list(range(n + 1))
    wide = np.empty(n + 1, np.int32)
    wide[problem.order] = np.arange(n + 1)
    plain = check(problem, Assignment(np.zeros(n + 1, np.int32), wide)).peaks[0]
    assert plain >= 1000
    assert lean.objective <= 111


def test_segments_divide_a_chain_evenly_when_silicons_are_unlike() -> None:
    n = 900
    problem = Problem(
        time=np.tile([1.0, 2.0], (n, 1)),
        silicon=[0, 1],
        pool=[0, 1],
        producer=np.arange(n),
        read_tensor=np.arange(n - 1),
        read_unit=np.arange(1, n),
        objective="throughput",
    )
    best = Best(problem)
    segments(problem, best, Budget(300))
    assert best.objective == 600
    small = problem.replace(weight_bytes=np.ones((n, 2), int), capacity=[300, NO])
    best = Best(small)
    segments(small, best, Budget(300))
    assert best.objective == 1200
