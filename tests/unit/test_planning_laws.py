"""What holds for every problem: tiny ones are solved exactly, constraints hold, no device alone is better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings

from hal.errors import Infeasible
from hal.planning.portfolio import solve
from hal.planning.problem import OBJECTIVES, Assignment, Problem
from hal.planning.simulate import simulate
from hal.planning.solution import Solution
from tests.unit.brute_force import TooMany, optima
from tests.unit.planning_problems import SHAPES, problems, random_problem

#: Seconds that are never spent: a tiny problem is solved in milliseconds, once the solvers are compiled.
PLENTY = 500.0


def alone(problem: Problem, target: int) -> Assignment:
    """All units on one target: one call, or one each."""
    partition = np.zeros(problem.n_units, np.int32)
    if problem.start == "unit":
        partition[problem.order] = np.arange(problem.n_units)
    return Assignment(np.full(problem.n_units, target, np.int32), partition)


def best_alone(problem: Problem) -> float:
    """The least objective of a single target that keeps all constraints; infinite where none does."""
    found = [simulate(problem, alone(problem, target)) for target in range(problem.n_targets)]
    return min((one.objective(problem.objective) for one in found if not one.violations), default=np.inf)


def assert_judged(problem: Problem, solution: Solution) -> None:
    """Every plan is what it says it is, and the bound is below all."""
    values = [plan.objective for plan in solution.proposals]
    assert values == sorted(values)
    for plan in solution.proposals:
        simulation = simulate(problem, plan.assignment)
        assert not simulation.violations
        assert simulation.objective(problem.objective) == pytest.approx(plan.objective, rel=1e-9)
    assert solution.bound <= values[0] * (1 + 1e-9)
    assert solution.gap == pytest.approx(max(values[0] - solution.bound, 0) / values[0] if values[0] else 0)


def assert_agrees(problem: Problem, most: int) -> None:
    """All four objectives, against every plan there is."""
    try:
        least, _ = optima(problem, most)
    except TooMany:
        assume(False)
    for name in OBJECTIVES:
        asked = problem.replace(objective=name)
        if np.isinf(least[name].value):
            with pytest.raises(Infeasible):
                solve(asked, budget_s=0.2)
            continue
        solution = solve(asked, budget_s=PLENTY)
        assert_judged(asked, solution)
        assert solution.best.objective == pytest.approx(least[name].value, rel=1e-9)
        assert solution.is_optimal
        again = simulate(asked, least[name].assignment)
        assert not again.violations
        assert again.objective(name) == pytest.approx(least[name].value, rel=1e-9)


@given(problems(max_units=7, max_targets=3))
@settings(max_examples=60, deadline=None)
def test_solve_agrees_with_brute_force_when_a_problem_is_tiny(problem: Problem) -> None:
    assert_agrees(problem, 50_000)


@pytest.mark.parametrize(
    ("n", "t", "start", "shape", "seed"),
    [
        *((12, 2, "partition", "chain", seed) for seed in (0, 2, 3, 4)),
        *((9, 3, "partition", "chain", seed) for seed in (1, 4)),
        *((12, 2, "unit", "chain", seed) for seed in (0, 1)),
        *((12, 2, "unit", "series_parallel", seed) for seed in (1, 3)),
        *((12, 2, "partition", "forks", seed) for seed in (1, 5)),
        *((12, 2, "partition", "series_parallel", seed) for seed in (1, 3)),
        *((10, 3, "unit", "random", seed) for seed in (5,)),
    ],
)
def test_solve_agrees_with_brute_force_when_there_are_up_to_twelve_units(
    n: int, t: int, start: str, shape: str, seed: int
) -> None:
    assert_agrees(
        random_problem(np.random.default_rng(seed), n, t, shape=shape, limits=0.3, start=start), 200_000
    )


@pytest.mark.slow
def test_no_plan_is_worse_than_the_best_device_nor_breaks_a_constraint_on_a_thousand_graphs() -> None:
    solved = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        n, t = int(rng.integers(2, 40)), int(rng.integers(1, 5))
        problem = random_problem(rng, n, t, shape=SHAPES[seed % len(SHAPES)], limits=0.15, allowed=0.97)
        single = best_alone(problem)
        try:
            solution = solve(problem, budget_s=0.01)
        except Infeasible:
            assert np.isinf(single)
            continue
        solved += 1
        assert solution.best.objective <= single * (1 + 1e-9)
        assert_judged(problem, solution)
    assert solved > 500


@pytest.mark.parametrize("shape", SHAPES)
def test_no_plan_is_worse_than_the_best_device_when_graphs_are_larger(shape: str) -> None:
    for objective in OBJECTIVES:
        rng = np.random.default_rng(3)
        problem = random_problem(rng, 300, 4, shape=shape, allowed=1.0, objective=objective)
        solution = solve(problem, budget_s=0.2)
        assert solution.best.objective <= best_alone(problem) * (1 + 1e-9)
        assert_judged(problem, solution)
