"""Which targets each unit can have in any plan that keeps the constraints."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hal.planning.problem import Floats, Ints, Problem
from hal.planning.violations import SLACK

Flags = npt.NDArray[np.bool_]


def domains(problem: Problem) -> Flags:
    """bool[n, t]: targets that a unit may have; a row without any says that the problem cannot be solved.

    Exact: a pair (unit, target) is struck out only where no plan with it keeps all constraints, because

    * the target cannot compute the unit, or one of its group (:attr:`Problem.same_device`);
    * the weights of its group there, what it needs beside them while it runs (:func:`need`), and the
      weights that can lie nowhere else pass the pool's capacity;
    * its group's error there and the least error of all other groups pass the budget.

    Striking out makes more weights lie nowhere else, so it is repeated until nothing changes.

    Source: node consistency, A. K. Mackworth, "Consistency in networks of relations", Artificial
    Intelligence 8 (1977), of each constraint taken alone.
    """
    found = problem.__dict__.get("_domains")
    if found is None:
        found = problem.__dict__["_domains"] = _domains(problem)
    assert isinstance(found, np.ndarray)
    return found


def groups(problem: Problem) -> Ints:
    """int[n]: number of the group of each unit, from 0 without gaps; a unit of no group is alone in one."""
    marks = np.where(problem.same_device >= 0, problem.same_device, -1 - np.arange(problem.n_units))
    return np.unique(marks, return_inverse=True)[1].astype(np.int64)


def by_group(group: Ints, values: npt.NDArray[np.generic]) -> Floats:
    """float64[groups, t]: values[n, t] summed over the units of each group."""
    count = int(group.max()) + 1
    found = np.empty((count, values.shape[1]))
    for b in range(values.shape[1]):
        found[:, b] = np.bincount(group, values[:, b].astype(np.float64), minlength=count)
    return found


def touched(problem: Problem) -> Floats:
    """float64[n]: bytes of the tensors that a unit reads or makes, each once."""
    n = problem.n_units
    size = problem.tensor_bytes.astype(np.float64)
    inner = problem.producer >= 0
    reads = np.bincount(problem.read_unit, size[problem.read_tensor], minlength=n)
    made = np.bincount(problem.producer[inner], size[inner], minlength=n)
    return np.asarray(reads + made, np.float64)


def need(problem: Problem) -> Floats:
    """float64[n, t]: least bytes beside weights that a unit holds in the target's pool while it runs.

    Its workspace and its tensors; nothing where it takes no time, because then no moment has to hold them.
    """
    beside = problem.workspace_bytes + touched(problem)[:, None]
    found: Floats = np.where((problem.time > 0) & problem.allowed, beside, 0)
    return found


def _domains(problem: Problem) -> Flags:
    group = groups(problem)
    count = int(group.max()) + 1
    can = by_group(group, ~problem.allowed) == 0
    weights = by_group(group, problem.weight_bytes)
    error = by_group(group, problem.error)
    beside = np.zeros((count, problem.n_targets))
    np.maximum.at(beside, group, need(problem))
    capacity = problem.capacity[problem.pool] * (1 + SLACK)
    while can.any(axis=1).all():
        least = np.where(can, error, np.inf).min(axis=1)
        keeps = can & (error + (least.sum() - least)[:, None] <= problem.max_error * (1 + SLACK))
        # Weights that lie in a pool for certain, by group: all targets it can have are of that pool.
        light = np.where(can, weights, np.inf).min(axis=1)
        forced = np.zeros(problem.n_pools)
        own = np.zeros((count, problem.n_targets))
        for pool in range(problem.n_pools):
            inside = problem.pool == pool
            bound = ~can[:, ~inside].any(axis=1)
            forced[pool] = light[bound].sum()
            own[np.ix_(bound, inside)] = light[bound][:, None]
        keeps &= weights + beside + forced[problem.pool] - own <= capacity
        if (keeps == can).all():
            break
        can = keeps
    found: Flags = can[group]
    found.flags.writeable = False
    return found
