"""Memory of each pool over the time of a simulated request."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.problem import OUTSIDE, Assignment, Floats, Ints, Problem
from hal.planning.simulate_tasks import Tasks


class Use(NamedTuple):
    """What a pool holds, as steps.

    Attributes:
        times: float64[k], rising; the first is 0.
        n_bytes: float64[k]: from each time to the next; the last until the end of all.
    """

    times: Floats
    n_bytes: Floats

    @property
    def peak(self) -> float:
        """Highest use."""
        return float(self.n_bytes.max())


def use_of_pools(
    problem: Problem, assignment: Assignment, tasks: Tasks, start: Floats, end: Floats
) -> tuple[Use, ...]:
    """Weights, workspaces and tensors by the rules of :mod:`hal.planning.problem`.

    Args:
        problem: Whose units are placed.
        assignment: The plan.
        tasks: Of the plan.
        start: float64[tasks].
        end: float64[tasks].
    """
    n_pools = problem.n_pools
    units = np.arange(problem.n_units)
    where = problem.pool[assignment.target]
    weights = np.zeros(n_pools)
    np.add.at(weights, where, problem.weight_bytes[units, assignment.target])
    workspace = np.zeros(tasks.n_partitions)
    np.maximum.at(workspace, assignment.partition, problem.workspace_bytes[units, assignment.target])
    calls = slice(0, tasks.n_partitions)
    begins, ends = _lifetimes(problem, assignment, tasks, start, end)
    tensors, pools = np.nonzero(ends > begins)
    begin = np.concatenate([start[calls], begins[tensors, pools]])
    until = np.concatenate([end[calls], ends[tensors, pools]])
    size = np.concatenate([workspace, problem.tensor_bytes[tensors].astype(np.float64)])
    pool = np.concatenate([problem.pool[tasks.target], pools])
    counts = (until > begin) & (size > 0)
    return tuple(
        _steps(weights[at], begin[mine], until[mine], size[mine])
        for at in range(n_pools)
        for mine in [np.flatnonzero(counts & (pool == at))]
    )


def _lifetimes(
    problem: Problem, assignment: Assignment, tasks: Tasks, start: Floats, end: Floats
) -> tuple[Floats, Floats]:
    """float64[v, m] twice: from when to when each tensor is in each pool; infinite to 0 where it never is."""
    begins = np.full((problem.n_tensors, problem.n_pools), np.inf)
    ends = np.zeros((problem.n_tensors, problem.n_pools))

    def touch(
        tensor: Ints, target: npt.NDArray[np.integer], first: Floats | float, last: Floats | float
    ) -> None:
        at = (tensor, problem.pool[target])
        np.minimum.at(begins, at, first)
        np.maximum.at(ends, at, last)

    made = np.flatnonzero(problem.producer != OUTSIDE)
    maker = problem.producer[made]
    by = assignment.partition[maker]
    touch(made, assignment.target[maker], start[by], end[by])
    kept = made[problem.is_output[made]]
    touch(kept, assignment.target[problem.producer[kept]], np.inf, end[: tasks.n_partitions].max())
    reads = assignment.partition[problem.read_unit]
    touch(problem.read_tensor, assignment.target[problem.read_unit], start[reads], end[reads])
    flights = slice(tasks.n_partitions, None)
    touch(tasks.handoff_tensor, tasks.handoff_to, start[flights], 0.0)
    touch(tasks.handoff_tensor, tasks.handoff_from, np.inf, end[flights])
    leaves_pool = problem.pool[tasks.within_from] != problem.pool[tasks.target[tasks.within_into]]
    touch(
        tasks.within_tensor[leaves_pool],
        tasks.within_from[leaves_pool],
        np.inf,
        end[tasks.within_into[leaves_pool]],
    )
    return begins, ends


def _steps(weights: float, begin: Floats, until: Floats, size: Floats) -> Use:
    """Half-open lives added up: what ends at a moment is gone before what begins then."""
    times, at = np.unique(np.concatenate([[0.0], begin, until]), return_inverse=True)
    change = np.zeros(len(times))
    np.add.at(change, at, np.concatenate([[0.0], size, -size]))
    return Use(times, weights + np.cumsum(change))
