"""All solvers on one problem within one budget of time: each in its turn, the best plan and bound kept."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hal.errors import InternalError
from hal.planning import infeasible
from hal.planning.bounds import prove
from hal.planning.check import check
from hal.planning.exhaustive import applies as is_tiny
from hal.planning.exhaustive import search
from hal.planning.fitting import fitting
from hal.planning.greedy import greedy
from hal.planning.problem import Problem
from hal.planning.reductions import reduced
from hal.planning.search import Best, Budget, Proposal
from hal.planning.simulate import simulate
from hal.planning.single import NAME, single
from hal.planning.solution import Finalists, Run, Solution

Solver = Callable[[Problem, Best, Budget, int], None]

#: Pairs of a unit and a target above which only solvers run whose time is about linear.
_LARGE = 20_000
#: Units and reads up to which the finalists are simulated: a few milliseconds each.
_SIMULATED = 5_000
#: Relative difference of sums of floating-point numbers in another order.
_TOLERANCE = 1e-6
#: Rounds of turns; later ones have other seeds.
_ROUNDS = 20


class Turn(NamedTuple):
    """A solver's place in the order.

    Attributes:
        module: In hal.planning; the solver is its function of the same name, for problems that its
            ``applies`` is true of, where it has one.
        share: Of the time left that it may take.
        objectives: It is for.
        starts: It is for.
        is_linear: Whether its time is about linear in the problem's size, or it stops in time by itself.
        is_random: Whether another seed is worth another turn.
        from_s: Seconds in all from which it is worth its start.
    """

    module: str
    share: float
    objectives: tuple[str, ...]
    starts: tuple[str, ...] = ("unit", "partition")
    is_linear: bool = False
    is_random: bool = False
    from_s: float = 0.0


#: In the order of their turns: quick ones first, so that those that improve plans have one to improve.
TURNS = (
    Turn("list_scheduling", 0.3, ("latency",), is_linear=True),
    Turn("filling", 0.3, ("latency", "energy"), is_linear=True),
    Turn("serial", 0.4, ("latency", "energy", "throughput"), ("partition",), is_linear=True),
    Turn("call_bound", 0.1, ("latency",), ("partition",)),
    Turn("segments", 0.3, ("throughput",), is_linear=True),
    Turn("balanced", 0.2, ("throughput",), is_linear=True),
    Turn("pipeline_order", 0.25, ("throughput",), is_random=True),
    Turn("pipeline_ideals", 0.3, ("throughput",)),
    Turn("forest_bound", 0.1, ("latency", "throughput"), is_linear=True),
    Turn("loads_bound", 0.4, ("latency", "throughput")),
    Turn("pipeline_local", 0.1, ("throughput",), is_linear=True, is_random=True),
    Turn("milp_throughput", 0.75, ("throughput",)),
    Turn("additive_local", 0.3, ("energy", "latency", "throughput"), is_linear=True, is_random=True),
    Turn("calls", 0.4, ("latency", "throughput", "energy"), ("partition",), is_linear=True, is_random=True),
    Turn("annealing", 0.6, ("latency",), is_linear=True, is_random=True),
    Turn("neighbourhood", 0.6, ("latency",), is_linear=True, is_random=True),
    Turn("cpsat", 0.5, ("latency",), is_random=True, from_s=8.0),
    Turn("milp_additive", 0.6, ("energy", "memory", "latency", "throughput")),
    Turn("milp_windows", 0.7, ("throughput",), is_random=True),
)


def solve(problem: Problem, *, budget_s: float = 2.0, seed: int = 0, finalists: int = 8) -> Solution:
    """The best plans that can be found in the time, and how far from optimal the best can be.

    In this order: what cannot hold is refused; all single-target plans and the greedy plans of other
    runtimes; cheap bounds; exact reductions; all plans, where the problem is tiny; then the solvers of
    :data:`TURNS` that fit the objective, each with its share of the time left, in rounds with new seeds,
    until the time is spent or the best plan is proven optimal. The plans handed back were simulated, where
    that is cheap, and the simulation agreed.

    Args:
        problem: The problem.
        budget_s: Seconds. One step of a solver that cannot be interrupted may pass it.
        seed: For solvers that use chance. The same seed gives the same plan for the same number of steps.
        finalists: Plans handed back, at most; single-target plans come on top.

    Raises:
        Infeasible: No plan keeps the constraints, with the constraint and by how much; or none was found,
            which the text says.
        InternalError: A solver's value is not the simulator's.

    Source: portfolios, C. P. Gomes and B. Selman, "Algorithm portfolios", Artificial Intelligence 126 (2001).
    """
    budget = Budget(budget_s)
    best = Finalists(problem)
    runs: list[Run] = []
    infeasible.refuse(problem)
    _run("single", single, problem, best, budget, seed, runs)
    _run("greedy", greedy, problem, best, budget.part(0.2 * budget.left), seed, runs)
    _run("bounds", prove, problem, best, budget.part(0.3 * budget.left), seed, runs)
    if best.proposal is None or problem.objective == "memory":
        _run("fitting", fitting, problem, best, budget.part(0.3 * budget.left), seed, runs)
        if best.proposal is None:
            _run("spreading weights", _fit, problem, best, budget.part(0.3 * budget.left), seed, runs)
    small = reduced(problem)
    inner = small.best(best)
    if is_tiny(small.problem) and not best.is_optimal:
        _run("exhaustive", _search, small.problem, inner, budget.part(0.6 * budget.left), seed, runs)
    for name, solver, part, number in _turns(small.problem, best, budget):
        _run(name, solver, small.problem, inner, part, seed + number, runs)
    if best.proposal is None:
        infeasible.explain(problem, best, budget)
    return Solution(
        proposals=tuple(judged(problem, best, finalists)),
        bound=best.bound,
        bound_source=best.bound_source,
        gap=best.gap,
        runs=tuple(runs),
    )


def _run(
    name: str, solver: Solver, problem: Problem, best: Best, budget: Budget, seed: int, runs: list[Run]
) -> None:
    before = time.monotonic()
    solver(problem, best, budget, seed)
    runs.append(Run(name, time.monotonic() - before, best.objective, best.bound))


def _fit(problem: Problem, best: Best, budget: Budget, seed: int) -> None:
    infeasible.fit(problem, best, budget)


def _search(problem: Problem, best: Best, budget: Budget, seed: int) -> None:
    """All plans; where there is none, say why at once instead of letting others look for one."""
    is_done, value = search(problem, best, budget)
    if is_done and value == float("inf"):
        infeasible.explain(problem, best, budget)


def _turns(problem: Problem, best: Best, budget: Budget) -> Iterator[tuple[str, Solver, Budget, int]]:
    """Solvers that fit, in rounds, as long as there is time, a gap, and somebody uses the time."""
    is_large = problem.n_units * problem.n_targets > _LARGE
    chosen = []
    for turn in TURNS:
        is_for = problem.objective in turn.objectives and problem.start in turn.starts
        if is_for and (turn.is_linear or not is_large) and budget.left >= turn.from_s:
            module = importlib.import_module(f"hal.planning.{turn.module}")
            if getattr(module, "applies", lambda _: True)(problem):
                chosen.append((turn, getattr(module, turn.module)))
    for number in range(_ROUNDS):
        before, left = best.objective, budget.left
        for turn, solver in chosen:
            if budget.is_spent or best.is_optimal:
                return
            yield turn.module, solver, budget.part(turn.share * budget.left), number
        chosen = [(turn, solver) for turn, solver in chosen if turn.is_random]
        if best.objective >= before and budget.left > 0.9 * left:
            return


def judged(problem: Problem, best: Finalists, finalists: int) -> Iterator[Proposal]:
    """The finalists, checked once more, and simulated where that is cheap.

    Args:
        problem: The problem.
        best: Plans, with the values that solvers were told.
        finalists: How many, at most; single-target plans come on top.

    Raises:
        InternalError: The simulator finds another value, or a broken constraint.
    """
    is_cheap = problem.n_units + len(problem.read_unit) <= _SIMULATED
    for value, name, plan in best.distinct(finalists, NAME + " "):
        checked = check(problem, plan)
        if is_cheap:
            simulation = simulate(problem, plan)
            other = simulation.objective(problem.objective)
            if simulation.violations or abs(other - value) > _TOLERANCE * max(abs(value), 1e-30):
                broken = "; ".join(one.text for one in simulation.violations) or "nothing"
                raise InternalError(
                    f"{name} found a plan of value {value!r} that the simulator gives {other!r}, and of "
                    f"which it says that it breaks: {broken}; report it"
                )
        yield Proposal(plan, value, name, checked)
