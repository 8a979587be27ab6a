"""All plans on one target: what a user would do without a planner, so no plan may be worse."""

from __future__ import annotations

import numpy as np

from hal.planning.problem import Assignment, Problem
from hal.planning.search import Best, Budget
from hal.planning.violations import is_over

#: Plans of this solver are named so, and then the target.
NAME = "only"


def single(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer, for each target that can compute every unit, all units on it.

    One partition where that keeps the constraints. Where it does not (one partition holds all its
    activations until it ends), the same in ever more partitions along a topological order, up to one per
    unit: fewer calls are faster, more hold less memory.

    Exact for one target. All targets are tried whatever the budget: the promise never to be worse than
    a single target rests on it.

    Source: DESIGN of the project, principle 2.
    """
    for target in np.flatnonzero(problem.allowed.all(axis=0)).tolist():
        name = f"{NAME} {problem.target_names[target]}"
        chosen = np.full(problem.n_units, target, np.int32)
        for n_parts in _numbers_of_parts(problem, target):
            if best.offer(Assignment(chosen, _cut(problem, n_parts)), name) < np.inf:
                break


def _numbers_of_parts(problem: Problem, target: int) -> list[int]:
    """How many partitions to try, the fewest first."""
    n = problem.n_units
    if problem.start == "unit":
        return [n]
    limits = [
        limit for limit in (problem.max_partitions, int(problem.partitions_per_target[target])) if limit
    ]
    most = min([n, *limits])
    weights = float(problem.weight_bytes[:, target].sum())
    if np.isinf(problem.capacity[problem.pool[target]]):
        return [1]
    if is_over(weights, float(problem.capacity[problem.pool[target]])):
        # No number will do; one is tried for the sake of what it breaks.
        return [most]
    found, parts = [], 1
    while parts < most:
        found.append(parts)
        parts *= 4
    return [*found, most]


def _cut(problem: Problem, n_parts: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Partition of each unit: the topological order in parts of equal size."""
    n = problem.n_units
    partition = np.empty(n, np.int32)
    partition[problem.order] = np.arange(n) * n_parts // n
    return partition
