"""Pipelines by cutting linear orders of the units, and by looking for better orders."""

from __future__ import annotations

import heapq

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.partitions import Dag, dag, partitioned
from hal.planning.pipeline_model import Blocks, blocks, is_contiguous, targets_of
from hal.planning.pipeline_segments import Classes, classes, cut, tolls
from hal.planning.problem import Ints, Problem, Small
from hal.planning.search import Best, Budget

#: States of used targets that the dynamic program keeps per place.
_MOST_STATES = 4096
#: Places where an order may be cut; fewer where there are many blocks, because each is the start of a scan.
_MOST_CUTS, _MANY_BLOCKS, _FEW_CUTS = 600, 2_000, 150
#: Segments that are so much worse than the best plan of any solver are not looked at.
_WORSE = 1.3
#: Orders in a row that do not help before the solver ends.
_PATIENCE = 400


def applies(problem: Problem) -> bool:
    """Throughput, with not too many kinds of targets."""
    if problem.objective != "throughput":
        return False
    states = np.prod([len(known) + 1.0 for known in classes(problem).members])
    return bool(states <= _MOST_STATES)


def pipeline_order(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Cut linear orders of the units, one segment per target.

    Exact for each order where targets have silicon and pools of their own and handoffs cost the same whoever
    is at the other end. Orders: near the units' numbers, depth first from either end, at random; then
    orders that keep the segments of the best plan and shuffle within them, which cannot be worse. Where
    targets may have several partitions, units that share a target need not be neighbours in the graph: then
    also orders of the blocks by their first units.

    Source: see :mod:`hal.planning.pipeline_segments`.
    """
    closed = blocks(problem, closed=True)
    searches = [_Orders(problem, closed, None, np.random.default_rng(seed))]
    if not is_contiguous(problem):
        free = blocks(problem, closed=False)
        if len(free.pipeline.time) > len(closed.pipeline.time):
            searches.append(_Orders(problem, free, dag(problem), np.random.default_rng(seed)))
    while searches:
        for search in tuple(searches):
            if budget.is_spent or best.is_optimal:
                return
            search.step(best)
            if search.idle >= _PATIENCE:
                searches.remove(search)


class _Orders:
    """A search over orders of the same blocks.

    Args:
        problem: The problem.
        found: Its blocks.
        units: The graph of the units, where blocks are ordered by their first units; None where blocks form
            a DAG and are ordered along it.
        rng: For orders.

    Attributes:
        idle: Orders in a row that did not help.
    """

    def __init__(self, problem: Problem, found: Blocks, units: Dag | None, rng: np.random.Generator) -> None:
        self._problem, self._found, self._units, self._rng = problem, found, units, rng
        self._kinds = classes(problem)
        self._costs = tolls(found.pipeline, self._kinds, least=False)
        n = len(found.pipeline.time)
        self._may_cut = np.zeros(n + 1, np.int32)
        cuts = min(n, _MOST_CUTS if n <= _MANY_BLOCKS else _FEW_CUTS)
        self._may_cut[np.linspace(0, n, cuts + 1).astype(np.int64)] = 1
        self._segment = np.zeros(n, np.int32)
        self._limit = np.inf
        self._number = 0
        self.idle = 0

    def step(self, best: Best) -> None:
        """Cut one more order and offer what is better than this search's best."""
        order = self._next()
        self._number += 1
        self.idle += 1
        p, most = self._found.pipeline, self._problem.max_partitions
        limit = min(self._limit, _WORSE * best.objective)
        value, split = cut(p, self._costs, order, self._may_cut, limit, most)
        if not value < limit * (1 - 1e-12):
            return
        self.idle, self._limit, self._segment = 0, value, split[1]
        target = targets_of(self._found, spread(self._kinds, split))
        if not np.isfinite(best.offer(partitioned(self._problem, target), "dynamic program over an order")):
            # It breaks what the program does not see; another order may not.
            self._limit, self._segment = np.inf, np.zeros_like(self._segment)

    def _next(self) -> Small:
        number, n = self._number, len(self._segment)
        graph = self._units or self._found.graph
        major = np.zeros(len(graph.after_at) - 1, np.int64)
        if number == 0 and self._units is None:
            major = self._found.first.astype(np.int64)
        elif number == 0:
            return np.argsort(self._found.first, kind="stable").astype(np.int32)
        # Of every eight orders three are random or depth first alone; the rest keep to the best plan.
        elif number >= 8 and number % 8 >= 3 and self._units is None:
            major = self._segment.astype(np.int64)
        backwards = number % 2 == 1
        if backwards:
            graph = Dag(graph.before_at, graph.before, graph.after_at, graph.after)
            major = major.max() - major
        depth_first = (1.0, 1.0, 0.9, 0.5, 0.0)[number % 5]
        seed = int(self._rng.integers(1 << 31))
        order = topological(graph.after_at, graph.after, graph.before_at, major, depth_first, seed)
        if backwards:
            order = order[::-1].copy()
        if self._units is None:
            return order
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        first = np.full(n, len(order))
        np.minimum.at(first, self._found.block, place)
        return np.argsort(first, kind="stable").astype(np.int32)


def spread(kinds: Classes, split: Small) -> Small:
    """int32[n]: a target for each block, from its class and its segment."""
    target = np.empty(split.shape[1], np.int32)
    taken = [0] * len(kinds.members)
    for segment in range(int(split[1].max()) + 1):
        of_it = split[1] == segment
        kind = int(split[0, int(np.argmax(of_it))])
        target[of_it] = kinds.members[kind][taken[kind]]
        taken[kind] += 1
    return target


@compiled
def topological(
    after_at: Small, after: Small, before_at: Small, major: Ints, depth_first: float, seed: int
) -> Small:
    """int32[n]: a random topological order, the units of a lower ``major`` first.

    With the chance ``depth_first`` a unit comes as soon as it can, otherwise at random.
    """
    np.random.seed(seed)
    n = len(major)
    waiting = np.empty(n, np.int32)
    order = np.empty(n, np.int32)
    ready = [(np.int64(0), 0.0, np.int64(0)) for _ in range(0)]
    for unit in range(n):
        waiting[unit] = before_at[unit + 1] - before_at[unit]
        if waiting[unit] == 0:
            heapq.heappush(ready, (major[unit], np.random.random(), np.int64(unit)))
    count = 0
    while len(ready):
        first = heapq.heappop(ready)[2]
        order[count] = first
        count += 1
        for at in range(after_at[first], after_at[first + 1]):
            reader = after[at]
            waiting[reader] -= 1
            if waiting[reader] == 0:
                key = np.random.random()
                if np.random.random() < depth_first:
                    key -= count
                else:
                    key -= count * np.random.random()
                heapq.heappush(ready, (major[reader], key, np.int64(reader)))
    return order
