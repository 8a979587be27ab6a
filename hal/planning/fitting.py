"""Plans that need little memory: orders with few live tensors, and weights spread over the pools."""

from __future__ import annotations

import heapq

import numpy as np

from hal.planning.domains import domains, need
from hal.planning.labelling import Labelling, labels, minimised
from hal.planning.partitions import dag, partitioned
from hal.planning.problem import Assignment, Ints, Problem, Small
from hal.planning.search import Best, Budget
from hal.planning.segments import by_weight

#: Pairs of a unit and a target up to which HiGHS spreads weights.
_COLUMNS = 60_000
#: Rounds without a better plan after which the order is left as it is.
_PATIENCE = 400


def fitting(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer plans that hold little memory at once; where memory is the objective, better and better ones.

    Choices of targets: one target; segments of a topological order, of weights in proportion to the pools'
    capacity, over the targets in several orders; and by HiGHS, the fullest pool as empty as can be. Each is
    tried in few partitions, and unit by unit in an order that frees tensors early.

    Source: the order is list scheduling by the least growth of live bytes, R. Sethi and J. D. Ullman, "The
    generation of optimal code for arithmetic expressions", J. ACM 17 (1970), made greedy for DAGs; the
    targets, min-max bin packing.
    """
    if not domains(problem).any(axis=1).all():
        return
    wants_memory = problem.objective == "memory"
    if not wants_memory:
        for target in by_weight(problem, problem.order):
            _offer(best, target, problem.order)
            if best.proposal is not None or budget.is_spent:
                break
        if best.proposal is not None:
            return
    lean = lean_order(problem)
    for target in by_weight(problem, lean):
        _offer(best, target, lean)
        if budget.is_spent or (best.proposal is not None and not wants_memory):
            return
    if wants_memory:
        for b in np.flatnonzero(domains(problem).all(axis=0)).tolist():
            _offer(best, np.full(problem.n_units, b, np.int32), lean)
    if best.proposal is None and problem.n_units * problem.n_targets <= _COLUMNS:
        spread = _spread(problem, budget)
        if spread is not None:
            _offer(best, spread, lean)
    if wants_memory and best.proposal is not None:
        _improve(problem, best, budget, seed)


def lean_order(problem: Problem) -> Ints:
    """int[n]: a topological order; of the units that may come next, the one that adds least live bytes."""
    graph, n = dag(problem), problem.n_units
    size = problem.tensor_bytes.tolist()
    made: list[list[int]] = [[] for _ in range(n)]
    reads: list[list[int]] = [[] for _ in range(n)]
    readers: list[list[int]] = [[] for _ in size]
    for x, unit in enumerate(problem.producer.tolist()):
        if unit >= 0:
            made[unit].append(x)
    for x, unit in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
        reads[unit].append(x)
        readers[x].append(unit)
    left = [len(units) for units in readers]
    is_output = problem.is_output.tolist()
    grows = [sum(size[x] for x in made[u] if readers[x] or is_output[x]) for u in range(n)]
    for x, units in enumerate(readers):
        if len(units) == 1 and not is_output[x]:
            grows[units[0]] -= size[x]
    waiting = np.diff(graph.before_at).tolist()
    after, after_at = graph.after.tolist(), graph.after_at.tolist()
    place = {unit: at for at, unit in enumerate(problem.order.tolist())}
    # The latest first among equals: depth first.
    ready = [(grows[u], -place[u], u) for u in range(n) if not waiting[u]]
    heapq.heapify(ready)
    done = [False] * n
    found = []
    while ready:
        growth, _, unit = heapq.heappop(ready)
        if done[unit] or growth != grows[unit]:
            continue
        done[unit] = True
        found.append(unit)
        for x in reads[unit]:
            left[x] -= 1
            if left[x] == 1 and not is_output[x]:
                last = next(reader for reader in readers[x] if not done[reader])
                grows[last] -= size[x]
                if not waiting[last]:
                    heapq.heappush(ready, (grows[last], -place[last], last))
        for reader in after[after_at[unit] : after_at[unit + 1]]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (grows[reader], -place[reader], reader))
    return np.array(found, np.int64)


def _offer(best: Best, target: Small, order: Ints) -> None:
    """Offer a choice of targets in few partitions, as runs of an order, and unit by unit."""
    problem = best.problem
    by_unit = np.empty(problem.n_units, np.int32)
    by_unit[order] = np.arange(problem.n_units)
    plans = [Assignment(target, by_unit)]
    if problem.start == "partition":
        runs = np.empty(problem.n_units, np.int32)
        runs[order] = np.concatenate([[0], np.cumsum(target[order][1:] != target[order][:-1])])
        plans = [partitioned(problem, target), Assignment(target, runs), *plans]
    for plan in plans:
        if best.offer(plan, "fitting") < np.inf and problem.objective != "memory":
            return


def _spread(problem: Problem, budget: Budget) -> Small | None:
    """The choice of targets whose fullest pool, in shares of its capacity, is as empty as HiGHS finds."""
    model = Labelling(problem, with_costs=False)
    fullest = model.column(upper=1.0)
    beside = need(problem)
    for pool in np.flatnonzero(np.isfinite(problem.capacity) & (problem.capacity > 0)).tolist():
        share = 1 / float(problem.capacity[pool])
        inside = [int(b) for b in np.flatnonzero(problem.pool == pool)]
        terms = [
            (at, value * share) for b in inside for at, value in model.units(problem.weight_bytes[:, b], b)
        ]
        largest = float(beside[:, inside].max()) * share
        model.row(-np.inf, -min(largest, 0.0), [*terms, (fullest, -1.0)])
    solved = minimised(model, [(fullest, 1.0)], max(budget.left / 2, 0.2))
    return None if solved.values is None else labels(model, solved.values)


def _improve(problem: Problem, best: Best, budget: Budget, seed: int) -> None:
    """Hill climbing over the order of units: a unit moves as far as what feeds it and what it feeds allow."""
    assert best.proposal is not None
    random = np.random.default_rng(seed)
    plan = best.proposal.assignment
    graph, n = dag(problem), problem.n_units
    if problem.start == "partition" and plan.n_partitions < n:
        return
    at, target = plan.partition.astype(np.int64), plan.target
    value, idle = best.objective, 0
    while idle < _PATIENCE and not budget.is_spent and not best.is_optimal:
        unit = int(random.integers(n))
        makers = graph.before[graph.before_at[unit] : graph.before_at[unit + 1]]
        readers = graph.after[graph.after_at[unit] : graph.after_at[unit + 1]]
        low = int(at[makers].max()) + 1 if len(makers) else 0
        high = int(at[readers].min()) - 1 if len(readers) else n - 1
        to = int(random.integers(low, high + 1))
        here = int(at[unit])
        idle += 1
        if to == here:
            continue
        moved = at.copy()
        moved[(at > here) & (at <= to)] -= 1
        moved[(at < here) & (at >= to)] += 1
        moved[unit] = to
        got = best.offer(Assignment(target, moved.astype(np.int32)), "fitting")
        if got <= value:
            idle = idle if got == value else 0
            at, value = moved, got
