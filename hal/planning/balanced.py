"""Even loads in about linear time: a start for pipelines that are too large for linear programs."""

from __future__ import annotations

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.domains import Flags, by_group, domains, groups
from hal.planning.partitions import partitioned
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget

#: Powers of the norms that are made small, one after the other, and passes over all groups for each. The
#: largest of s loads is at most s^(1/64) times its 64-norm, 3% for 8; higher ones see the largest load only
#: and get stuck.
_POWERS, _PASSES = (4.0, 16.0, 64.0), 6
_NAME = "even loads"


def applies(problem: Problem) -> bool:
    """Throughput on several silicons, with any number of partitions."""
    is_free = not problem.max_partitions and not problem.partitions_per_target.any()
    return problem.objective == "throughput" and problem.n_silicons > 1 and is_free


def balanced(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer targets that make the loads of silicons even; handoffs are not looked at.

    Groups are put one after the other where the sum of the powers of all loads is least, and moved again in
    more passes, which is coordinate descent of a convex function; where groups are small that comes close to
    the linear program of loads. No pool gets more weights than it has room for; nothing is offered where a
    group finds room nowhere.

    Source: list scheduling for the p-norm of loads, B. Awerbuch et al., "Load balancing in the L_p norm",
    FOCS 1995.
    """
    can, group = domains(problem), groups(problem)
    if not can.any(axis=1).all():
        return
    first = np.unique(group, return_index=True)[1]
    slots = problem.slots[problem.silicon].astype(np.float64)
    time = by_group(group, np.where(problem.allowed, problem.time, 0))
    time = np.divide(time, slots, out=np.zeros_like(time), where=slots > 0)
    weight = by_group(group, problem.weight_bytes).astype(np.float64)
    target = np.full(len(first), -1, np.int32)
    order = np.random.default_rng(seed).permutation(len(first))
    for power in _POWERS:
        if budget.is_spent:
            break
        _even(time, weight, can[first], problem.silicon, problem.pool, problem.capacity, order, target, power)
    if (target >= 0).all():
        best.offer(partitioned(problem, target[group]), _NAME)


@compiled
def _even(
    time: Floats,
    weight: Floats,
    can: Flags,
    silicon: Ints,
    pool: Ints,
    capacity: Floats,
    order: Ints,
    target: Small,
    power: float,
) -> None:
    """Passes over all groups; ``target`` (-1: nowhere yet) is changed in place."""
    n, n_targets = time.shape
    loads, held = np.zeros(silicon.max() + 1), np.zeros(len(capacity))
    largest = 0.0
    for g in range(n):
        for b in range(n_targets):
            largest = max(largest, time[g, b] if can[g, b] else 0.0)
        if target[g] < 0:
            continue
        loads[silicon[target[g]]] += time[g, target[g]]
        held[pool[target[g]]] += weight[g, target[g]]
    for _ in range(_PASSES):
        is_moved = False
        # Powers of shares of the largest load stay within a float's range.
        scale = max(loads.max(), largest, 1e-300)
        for g in order:
            old = target[g]
            if old >= 0:
                loads[silicon[old]] -= time[g, old]
                held[pool[old]] -= weight[g, old]
            chosen, least = old, np.inf
            for b in range(n_targets):
                if not can[g, b] or held[pool[b]] + weight[g, b] > capacity[pool[b]]:
                    continue
                load = loads[silicon[b]] / scale
                cost = (load + time[g, b] / scale) ** power - load**power
                if cost < least or (cost == least and b == old):
                    chosen, least = b, cost
            if chosen < 0:  # no room anywhere
                continue
            target[g] = chosen
            is_moved |= chosen != old
            loads[silicon[chosen]] += time[g, chosen]
            held[pool[chosen]] += weight[g, chosen]
        if not is_moved:
            return
