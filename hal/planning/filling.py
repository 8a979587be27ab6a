"""The quickest targets filled to the brim, along a topological order: models too large for a quick device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hal.planning.domains import domains
from hal.planning.partitions import partitioned
from hal.planning.problem import Assignment, Ints, Problem, Small
from hal.planning.search import Best, Budget
from hal.planning.segments import quickest

#: Halvings of the share of a pool that weights may take: then it is right to a hundredth.
_HALVINGS = 7
#: Units of a partition that are tried beside whole segments: shorter partitions free tensors earlier, and
#: each costs a call more.
_LENGTHS = (200, 50, 10)


def applies(problem: Problem) -> bool:
    """Latency or energy, where memory limits what the quickest target can take."""
    if problem.objective not in ("latency", "energy"):
        return False
    heaviest = np.where(domains(problem), problem.weight_bytes, 0).sum(axis=0)
    return bool((heaviest > problem.capacity[problem.pool]).any())


def filling(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer plans whose segments fill one pool after the other, that of the quickest target first.

    How much of a pool weights may take, so that tensors fit beside them, is found by bisection; each share is
    tried with whole segments, and with segments in shorter partitions. Where units are alike and handoffs
    cheap, as in a deep decoder, no plan on these targets is better: time moved to a slower target is lost.

    Source: first fit of items in a fixed order, as in the fractional knapsack, G. B. Dantzig, "Discrete-
    variable extremum problems", Operations Research 5 (1957).
    """
    targets = quickest(problem, problem.pool)
    order = problem.order
    can = domains(problem)[order]
    weight = problem.weight_bytes[order]
    # Without the slowest the others may do, and the next slowest then gets what is left over.
    for count in range(len(targets), 0, -1):
        if _filled(problem, targets[:count], can, weight, 1.0) is None:
            return
        low, high, share = 0.0, 1.0, 1.0
        for _ in range(_HALVINGS):
            if budget.is_spent:
                return
            filled = _filled(problem, targets[:count], can, weight, share)
            if filled is None or _offer(best, filled, order):
                low = share
            else:
                high = share
            share = (low + high) / 2


def _filled(
    problem: Problem, targets: list[int], can: npt.NDArray[np.bool_], weight: Ints, share: float
) -> Small | None:
    """Targets of the units, in the order; None where they do not fit."""
    n = len(weight)
    chosen = np.full(n, -1, np.int32)
    first = 0
    for b in targets:
        room = share * problem.capacity[problem.pool[b]]
        total = np.cumsum(weight[first:, b])
        stop = first + int(np.searchsorted(total, room, side="right"))
        refused = np.flatnonzero(~can[first:stop, b])
        stop = first + int(refused[0]) if len(refused) else stop
        chosen[first:stop] = b
        first = stop
        if first == n:
            return chosen
    return None


def _offer(best: Best, filled: Small, order: Ints) -> bool:
    """Offer targets given in an order; whether any form of it keeps the constraints."""
    problem = best.problem
    target = np.empty_like(filled)
    target[order] = filled
    plans = [partitioned(problem, target)]
    if problem.start == "partition":
        starts = np.concatenate([[True], filled[1:] != filled[:-1]])
        place = np.arange(len(filled))
        since = place - np.maximum.accumulate(np.where(starts, place, 0))
        for length in _LENGTHS:
            partition = np.empty(len(filled), np.int32)
            partition[order] = np.cumsum(starts | (since % length == 0)) - 1
            plans.append(Assignment(target, partition))
    return min(best.offer(plan, "filling") for plan in plans) < np.inf
