"""The plans that OpenVINO's HETERO and ONNX Runtime would make: each unit to the first that supports it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.contraction import Joined
from hal.planning.domains import Flags, domains
from hal.planning.flat import Flat, flat
from hal.planning.partitions import Dag, dag
from hal.planning.problem import Assignment, Ints, Problem, Small
from hal.planning.search import Best, Budget

#: Up to so many targets, all orders of priority are tried: 24 of them.
_ALL_ORDERS = 4
#: Up to so many pairs of a unit and an order, each ordered pair of first targets is tried.
_MANY = 2_000_000


def greedy(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer, for each sensible order of priority, each unit on the first target that can compute it.

    The units of each target are grouped into partitions twice, as either runtime does it:

    * HETERO: connected subgraphs of one affinity, cut where a path leaves and comes back.
    * ONNX Runtime: what a target can run is run until nothing of its is ready, connected or not.

    Neither looks at costs: these plans are what planning is compared with, and they start other solvers.

    Source: OpenVINO, "Heterogeneous execution" (automatic fallback by a list of priorities) and the
    ``SubgraphCollector`` of its hetero plugin; ONNX Runtime, ``GraphPartitioner`` (execution providers in the
    order of the session's list) and ``CreateSupportedPartitionNodeGroups`` of its partitioning helpers.
    """
    can = domains(problem)
    if not can.any(axis=1).all():
        return
    seen: set[bytes] = set()
    for order in _orders(problem, can):
        if budget.is_spent and seen:
            return
        ranked = np.array(order)
        target = ranked[np.argmax(can[:, ranked], axis=1)].astype(np.int32)
        if target.tobytes() in seen:
            continue
        seen.add(target.tobytes())
        if problem.start == "unit":
            alone = np.empty(problem.n_units, np.int32)
            alone[problem.order] = np.arange(problem.n_units)
            best.offer(Assignment(target, alone), "greedy by priority")
            continue
        best.offer(Assignment(target, connected(problem, target)), "greedy like HETERO")
        rank = np.argsort(ranked).astype(np.int32)
        best.offer(Assignment(target, exhausted(problem, target, rank)), "greedy like ONNX Runtime")


def connected(problem: Problem, target: Small) -> Small:
    """Partition of each unit: the largest connected convex sets of units of one target, by levels.

    The level of a unit is the highest number of changes of target on a path to it. Along a tensor the level
    never falls, and it stays the same only within one target; so units of one level and target, joined along
    tensors, are convex, and in the order of their levels no partition needs a later one.

    Args:
        problem: The problem.
        target: int32[n]: target of each unit.
    """
    graph = dag(problem)
    level = _levels(graph, flat(problem).order, target)
    source = np.repeat(np.arange(problem.n_units), np.diff(graph.after_at))
    sink = graph.after
    within = (target[source] == target[sink]) & (level[source] == level[sink])
    joined = Joined(problem.n_units)
    for one, other in zip(source[within].tolist(), sink[within].tolist(), strict=True):
        joined.join((one, other))
    home = np.array([joined.find(unit) for unit in range(problem.n_units)])
    position = np.empty(problem.n_units, np.int64)
    position[problem.order] = np.arange(problem.n_units)
    first = np.full(problem.n_units, problem.n_units)
    np.minimum.at(first, home, position)
    key = level.astype(np.int64) * problem.n_units + first[home]
    return np.unique(key, return_inverse=True)[1].astype(np.int32)


def exhausted(problem: Problem, target: Small, rank: Small) -> Small:
    """Partition of each unit: a target runs all it can; then the first in rank that can run anything.

    Args:
        problem: The problem.
        target: int32[n]: target of each unit.
        rank: int32[t]: priority of each target, 0 first.
    """
    return _exhausted(dag(problem), flat(problem), target, rank)


def _orders(problem: Problem, can: Flags) -> Iterator[tuple[int, ...]]:
    """Orders of priority, the most promising first; none where a target that can do all comes first.

    Such an order gives a single-target plan. What follows the first target that can do all is of no effect,
    so the rest is in the order of speed.
    """
    seconds = np.where(can, problem.time, 0).sum(axis=0) / np.maximum(can.sum(axis=0), 1)
    by_speed: Ints = np.argsort(seconds, kind="stable")
    partial = [int(b) for b in by_speed if not can[:, b].all()]
    rest = [int(b) for b in by_speed]
    if problem.n_targets <= _ALL_ORDERS:
        for order in itertools.permutations(rest):
            if order[0] in partial:
                yield order
        return
    for first in partial:
        yield (first, *(b for b in rest if b != first))
    if problem.n_units * problem.n_targets**2 > _MANY:
        return
    for first, second in itertools.permutations(partial, 2):
        yield (first, second, *(b for b in rest if b not in (first, second)))
    for first in partial:
        for second in rest:
            if second not in partial:
                yield (first, second, *(b for b in rest if b not in (first, second)))


@compiled
def _levels(graph: Dag, order: Small, target: Small) -> Small:
    level = np.zeros(len(target), np.int32)
    for unit in order:
        for at in range(graph.before_at[unit], graph.before_at[unit + 1]):
            maker = graph.before[at]
            level[unit] = max(level[unit], level[maker] + (target[maker] != target[unit]))
    return level


@compiled
def _exhausted(graph: Dag, f: Flat, target: Small, rank: Small) -> Small:
    """Queues of ready units per target, as linked lists in topological order."""
    n, n_targets = len(target), len(rank)
    partition = np.full(n, -1, np.int32)
    waiting = np.empty(n, np.int32)
    follows = np.full(n, -1, np.int32)
    head, tail = np.full(n_targets, -1, np.int32), np.full(n_targets, -1, np.int32)
    by_rank = np.argsort(rank)
    for unit in f.order:
        waiting[unit] = graph.before_at[unit + 1] - graph.before_at[unit]
        if waiting[unit] == 0:
            _enqueue(head, tail, follows, target[unit], unit)
    count, done = 0, 0
    while done < n:
        now = -1
        for b in by_rank:
            if head[b] >= 0:
                now = b
                break
        while head[now] >= 0:
            unit = head[now]
            head[now] = follows[unit]
            partition[unit] = count
            done += 1
            for at in range(graph.after_at[unit], graph.after_at[unit + 1]):
                reader = graph.after[at]
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    _enqueue(head, tail, follows, target[reader], reader)
        count += 1
    return partition


@compiled
def _enqueue(head: Small, tail: Small, follows: Small, b: int, unit: int) -> None:
    """Put a unit at the end of a target's queue."""
    if head[b] < 0:
        head[b] = unit
    else:
        follows[tail[b]] = unit
    tail[b] = unit
