"""One topological order in segments, one for each silicon or pool: a start in linear time, however large."""

from __future__ import annotations

import itertools

import numpy as np

from hal.planning.domains import domains, groups
from hal.planning.partitions import partitioned
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget

#: Orders of targets that are tried.
_ORDERS = 24
#: Halvings of the largest load: then it is right to a millionth.
_HALVINGS = 24


def segments(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer segments of the topological order, one per silicon, of loads as even as can be.

    For each order of the silicons (each by its quickest target), the smallest load for which filling one
    after the other up to it places all units is found by bisection. Handoffs are not looked at, and units
    that cannot be where they fall go to their quickest target, so this is a start for others.

    Source: the probe of the chains-on-chains partitioning problem, A. Pinar and C. Aykanat, "Fast optimal
    load balancing algorithms for 1D partitioning", J. Parallel and Distributed Computing 64 (2004).
    """
    can = domains(problem)
    if not can.any(axis=1).all():
        return
    order = problem.order
    slots = np.maximum(problem.slots[problem.silicon], 1)
    time = np.cumsum(
        np.vstack([np.zeros(problem.n_targets), np.where(can, problem.time, 0)[order] / slots]), axis=0
    )
    weight = np.cumsum(np.vstack([np.zeros(problem.n_targets), problem.weight_bytes[order]]), axis=0)
    # The evenest first: offers cost more than cuts.
    found = []
    for targets in itertools.islice(itertools.permutations(quickest(problem, problem.silicon)), _ORDERS):
        low, high = 0.0, float(time[-1].max())
        ends = None
        for _ in range(_HALVINGS):
            load = (low + high) / 2
            tried = _filled(problem, targets, time, weight, load)
            if tried is None:
                low = load
            else:
                high, ends = load, tried
        if ends is not None:
            found.append((high, targets, ends))
    for _, targets, ends in sorted(found, key=lambda one: one[0])[:3]:
        if budget.is_spent and best.proposal is not None:
            return
        best.offer(partitioned(problem, at_ends(problem, order, targets, ends)), "segments")


def by_weight(problem: Problem, order: Ints) -> list[Small]:
    """Choices of targets: the order in segments whose weights are in proportion to the pools' capacity."""
    weight = np.where(domains(problem), problem.weight_bytes, 0).max(axis=1).astype(np.float64) + 1e-9
    total = np.cumsum(weight[order])
    found = []
    for targets in itertools.islice(itertools.permutations(quickest(problem, problem.pool)), _ORDERS):
        room = np.minimum(problem.capacity[problem.pool[list(targets)]], weight.sum() * 2)
        share = np.cumsum(room) / max(float(room.sum()), 1e-300)
        found.append(at_ends(problem, order, targets, np.searchsorted(total, share * total[-1]).tolist()))
    return found


def quickest(problem: Problem, place: Ints) -> list[int]:
    """The quickest target of each silicon or pool, the quickest of all first; most able before all."""
    can = domains(problem)
    count = can.sum(axis=0)
    # Mean time, longer the fewer units a target can have.
    speed = np.where(can, problem.time, 0).sum(axis=0) / np.maximum(count, 1) ** 2
    chosen = []
    for number in range(int(place.max()) + 1):
        inside = [int(b) for b in np.flatnonzero((place == number) & (count > 0))]
        if inside:
            chosen.append(min(inside, key=lambda b: float(speed[b])))
    return sorted(chosen, key=lambda b: float(speed[b]))


def at_ends(problem: Problem, order: Ints, targets: tuple[int, ...], ends: list[int]) -> Small:
    """int32[n]: the target of each unit where segment i of the order, up to ends[i], is on targets[i].

    Groups go with their first unit; units that cannot be there, to the quickest target they can have.
    """
    can, group = domains(problem), groups(problem)
    place = np.minimum(np.searchsorted(ends, np.arange(problem.n_units), side="right"), len(targets) - 1)
    wanted = np.empty(problem.n_units, np.int64)
    wanted[order] = np.array(targets)[place]
    wanted = wanted[np.unique(group, return_index=True)[1]][group]
    time = np.zeros((int(group.max()) + 1, problem.n_targets))
    np.add.at(time, group, np.where(can, problem.time, np.inf))
    units = np.arange(problem.n_units)
    return np.where(can[units, wanted], wanted, time.argmin(axis=1)[group]).astype(np.int32)


def _filled(
    problem: Problem, targets: tuple[int, ...], time: Floats, weight: Floats, load: float
) -> list[int] | None:
    """Where segments end, each as long as the load and its pool allow; None where units are left."""
    start, ends = 0, []
    free = problem.capacity.copy()
    for b in targets:
        pool = problem.pool[b]
        end = int(np.searchsorted(time[:, b], time[start, b] + load, side="right")) - 1
        if np.isfinite(free[pool]):
            end = min(
                end, int(np.searchsorted(weight[:, b], weight[start, b] + free[pool], side="right")) - 1
            )
            free[pool] -= weight[end, b] - weight[start, b]
        start = max(start, end)
        ends.append(start)
    return ends if start == problem.n_units else None
