"""From a target for each unit to an assignment with few partitions, in an order that can run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.compiled import compiled
from hal.planning.problem import OUTSIDE, Assignment, Ints, Problem, Small

#: Which target runs next where none can finish: see :func:`_runs`.
_RULES = (0, 1, 2)


class Dag(NamedTuple):
    """Who feeds whom, each pair of units once (compressed sparse rows).

    Attributes:
        after_at: int32[n + 1]; units fed by unit u are ``after[after_at[u]:after_at[u + 1]]``.
        after: int32.
        before_at: int32[n + 1]; units that feed unit u are ``before[before_at[u]:before_at[u + 1]]``.
        before: int32.
    """

    after_at: Small
    after: Small
    before_at: Small
    before: Small


def dag(problem: Problem) -> Dag:
    """The problem's units as a graph, made once."""
    found = problem.__dict__.get("_dag")
    if found is None:
        maker = problem.producer[problem.read_tensor]
        inner = maker != OUTSIDE
        found = problem.__dict__["_dag"] = dag_of(problem.n_units, maker[inner], problem.read_unit[inner])
    assert isinstance(found, Dag)
    return found


def dag_of(n: int, source: Ints, sink: Ints) -> Dag:
    """The graph of n units whose edges are the pairs (source, sink); pairs may repeat."""
    keys = np.unique(source.astype(np.int64) * n + sink)
    source, sink = keys // n, keys % n
    by_sink = np.argsort(sink, kind="stable")
    return Dag(_starts(source, n), sink.astype(np.int32), _starts(sink, n), source[by_sink].astype(np.int32))


def partitioned(problem: Problem, target: npt.ArrayLike) -> Assignment:
    """An assignment with these targets and few partitions.

    One partition per target where the units of each are convex and the quotient is acyclic. Otherwise the
    fewest that six greedy passes find, three along the tensors and three against them. With
    ``start="unit"`` each unit is its own partition, in topological order. Limits on the number of
    partitions are not looked at: :func:`~hal.planning.check.check` tells.

    Args:
        problem: The problem.
        target: int[n]: target of each unit.

    Source: greedy closure, as in contracting a DAG by colour. A target that can finish loses nothing by
    running now; where none can, which one runs is a guess.
    """
    chosen = np.ascontiguousarray(target, np.int32)
    n = problem.n_units
    if problem.start == "unit":
        alone = np.empty(n, np.int32)
        alone[problem.order] = np.arange(n, dtype=np.int32)
        return Assignment(chosen, alone)
    return Assignment(chosen, few_partitions(dag(problem), chosen, problem.n_targets))


def few_partitions(graph: Dag, target: Small, n_targets: int) -> Small:
    """int32[n]: a partition of each unit; see :func:`partitioned`."""
    used = len(np.unique(target))
    best, fewest = np.empty(0, np.int32), len(target) + 1
    for rule in _RULES:
        for backwards in (False, True):
            after_at, after, before_at, before = graph
            if backwards:
                after_at, after, before_at, before = before_at, before, after_at, after
            partition, count = _runs(after_at, after, before_at, target, n_targets, rule)
            if count < fewest:
                best, fewest = (count - 1 - partition if backwards else partition), count
            if fewest == used:
                return best
    return best


def _starts(keys: Ints, count: int) -> Small:
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=count))]).astype(np.int32)


@compiled
def _runs(
    after_at: Small, after: Small, before_at: Small, target: Small, n_targets: int, rule: int
) -> tuple[Small, int]:
    """Partitions and their number, by running one target after another for as long as it can.

    What a target could run now is kept up to date: a unit is pending when each unit that feeds it has run,
    or is pending on the same target. A target whose units left are all pending runs first. Where there is
    none: the target with the most pending units (rule 0), with the fewest units left behind (1), or with the
    largest share of its units left (2).
    """
    n = len(target)
    partition = np.full(n, -1, np.int32)
    waiting = np.empty(n, np.int32)
    follows = np.full(n, -1, np.int32)
    head, tail = np.full(n_targets, -1, np.int32), np.full(n_targets, -1, np.int32)
    pending, left = np.zeros(n_targets, np.int64), np.zeros(n_targets, np.int64)
    stack = np.empty(n, np.int32)
    height = 0
    for unit in range(n):
        left[target[unit]] += 1
        waiting[unit] = before_at[unit + 1] - before_at[unit]
        if waiting[unit] == 0:
            stack[height] = unit
            height += 1
    done, count = 0, 0
    while True:
        while height:
            height -= 1
            unit = stack[height]
            b = target[unit]
            if tail[b] < 0:
                head[b] = unit
            else:
                follows[tail[b]] = unit
            tail[b] = unit
            pending[b] += 1
            for at in range(after_at[unit], after_at[unit + 1]):
                reader = after[at]
                if target[reader] == b:
                    waiting[reader] -= 1
                    if waiting[reader] == 0:
                        stack[height] = reader
                        height += 1
        if done == n:
            return partition, count
        best, best_worth = -1, -np.inf
        for b in range(n_targets):
            if pending[b] == 0:
                continue
            worth = np.inf
            if pending[b] < left[b]:
                if rule == 0:
                    worth = pending[b]
                elif rule == 1:
                    worth = pending[b] - left[b]
                else:
                    worth = pending[b] / left[b]
            if worth > best_worth:
                best, best_worth = b, worth
        unit = head[best]
        head[best], tail[best] = -1, -1
        done += pending[best]
        left[best] -= pending[best]
        pending[best] = 0
        while unit >= 0:
            partition[unit] = count
            for at in range(after_at[unit], after_at[unit + 1]):
                reader = after[at]
                if target[reader] != best:
                    waiting[reader] -= 1
                    if waiting[reader] == 0:
                        stack[height] = reader
                        height += 1
            unit = follows[unit]
        count += 1
