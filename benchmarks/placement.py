"""How good placements of public problems are: our value, the proven bound, what others reached, the time.

Reads the instances of tests/workloads from the folder that ``HAL_WORKLOADS`` names and prints a Markdown
table. Compiled code is loaded before, on a small problem of each family; what that took is said apart.
Times include reading.

    HAL_WORKLOADS=FOLDER python -m benchmarks.placement [--family latency] [--only gnmt] [--budget-s 10]
        [--solver pipeline_order]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from typing import NamedTuple

import numpy as np

from hal.planning.portfolio import TURNS, solve
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget
from hal.planning.single import single
from tests.workloads.instances import Instance, instances, workloads

#: How far printed references are rounded.
_ROUNDING = 1e-4


class Row(NamedTuple):
    """What came of an instance.

    Attributes:
        instance: It.
        n_units: Of the problem.
        value: Of the best plan; infinite where there is none.
        bound: Proven.
        solver: Who found the plan.
        seconds: Reading and solving.
    """

    instance: Instance
    n_units: int
    value: float
    bound: float
    solver: str
    seconds: float


def run(instance: Instance, solver: str, budget_s: float | None, seed: int = 0) -> Row:
    """Read and solve an instance, by one solver after the quick dynamic program, or by all where it is ''."""
    began = time.monotonic()
    problem = instance.load()
    left = (budget_s or instance.budget_s) - (time.monotonic() - began)
    if solver:
        best = _alone(problem, solver, left, seed)
        value, bound = best.objective, best.bound
        who = best.proposal.solver if best.proposal else "none"
    else:
        solution = solve(problem, budget_s=left, seed=seed)
        value, bound, who = solution.best.objective, solution.bound, solution.best.solver
    return Row(instance, problem.n_units, value, bound, who, time.monotonic() - began)


def text(row: Row) -> str:
    """A line of the table."""
    instance = row.instance
    gap = (row.value - row.bound) / row.value if row.value else 0.0
    said = "optimal" if gap <= 1e-9 else f"{100 * gap:.2f}%"
    difference = row.value - instance.reference
    verdict = "same" if abs(difference) <= _ROUNDING * instance.reference else f"{difference:+.4g}"
    return (
        f"| {instance.family} | {instance.name} | {row.n_units} | {row.value:.7g} | {row.bound:.7g} | {said} "
        f"| {instance.reference:.7g} ({instance.reference_text}) | {verdict} | {row.solver} "
        f"| {row.seconds:.2f} of {instance.budget_s:g} |"
    )


def warm_up(families: set[str]) -> float:
    """Seconds to load compiled code, or to compile it where this version has not run here before."""
    began = time.monotonic()
    for family in sorted(families):
        problem = _small(family)
        solve(problem, budget_s=0.5)
        # Each solver by itself: the portfolio ends as soon as the best plan is proven optimal.
        for turn in TURNS:
            module = importlib.import_module(f"hal.planning.{turn.module}")
            is_for = problem.objective in turn.objectives and problem.start in turn.starts
            if is_for and getattr(module, "applies", lambda _: True)(problem):
                best = Best(problem)
                single(problem, best, Budget(1.0))
                getattr(module, turn.module)(problem, best, Budget(0.1), 0)
    return time.monotonic() - began


def _alone(problem: Problem, solver: str, seconds: float, seed: int) -> Best:
    budget = Budget(seconds)
    best = Best(problem)
    if problem.objective == "throughput" and solver != "pipeline_order":
        quick = importlib.import_module("hal.planning.pipeline_order")
        quick.pipeline_order(problem, best, budget.part(0.5), seed)
    getattr(importlib.import_module(f"hal.planning.{solver}"), solver)(problem, best, budget, seed)
    return best


def _small(family: str) -> Problem:
    """Too large for all plans to be tried, so that the solvers run."""
    rng = np.random.default_rng(0)
    n, t = 40, 3
    ladder = np.arange(n - 1)
    makes_span, is_latency = family == "makespan", family == "latency"
    return Problem(
        time=rng.integers(1, 9, (n, t)).astype(np.float64),
        silicon=np.arange(t),
        pool=np.arange(t),
        producer=np.arange(n),
        read_tensor=np.concatenate([ladder, ladder[:-1]]),
        read_unit=np.concatenate([ladder + 1, ladder[:-1] + 2]),
        transfer=np.full((n, t, t), 1.0) * ~np.eye(t, dtype=bool) * makes_span,
        send=np.full((n, t), 0.0 if makes_span else 1.0),
        receive=np.full((n, t), 0.0 if makes_span else 1.0),
        slots=np.array([1, 1, 0 if is_latency else 1]),
        charge="edge" if makes_span else "target",
        start="unit" if makes_span else "partition",
        overlap=makes_span,
        send_port=makes_span,
        receive_port=makes_span,
        partitions_per_target=np.full(t, 1 if "contiguous" in family else 0),
        objective="throughput" if "throughput" in family else "latency",
    )


def main() -> int:
    """Print the table; the exit code is 2 where the data is not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", default="", help="only instances of this family")
    parser.add_argument("--only", default="", help="only instances with this in their name")
    parser.add_argument("--solver", default="", help="one solver by name instead of all")
    parser.add_argument("--budget-s", type=float, default=None, help="seconds instead of each instance's own")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = workloads()
    if folder is None or not folder.is_dir():
        print("HAL_WORKLOADS names no folder; set it to the one with dnn-partitioning", file=sys.stderr)
        return 2
    chosen = [
        instance
        for instance in instances(folder)
        if asked.family in ("", instance.family) and asked.only in instance.name
    ]
    cold = warm_up({instance.family for instance in chosen})
    print(f"Loading compiled code took {cold:.1f} s before the first instance.\n")
    print(
        "| family | instance | nodes | value | bound | gap | reference | difference | found by | seconds |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for instance in chosen:
        print(text(run(instance, asked.solver, asked.budget_s, asked.seed)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
