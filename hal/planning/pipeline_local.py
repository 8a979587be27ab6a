"""Pipelines by annealing over the target of each unit; a target may then run several partitions."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.partitions import Dag, partitioned
from hal.planning.pipeline_model import Pipeline, State, blocks, is_contiguous, move, state, targets_of
from hal.planning.problem import Floats, Problem, Small
from hal.planning.search import Best, Budget

#: Moves between two looks at the clock.
_STEPS = 20_000
#: Rounds of so many moves in the first cooling; each later cooling takes twice as many.
_ROUNDS = 10
_MOST_ROUNDS = 640
#: First temperatures of coolings, in turn, and the last of each, as shares of the largest load: warm where
#: few blocks make up a load, cold where a good plan is to be refined.
_HOT, _COLD = (0.01, 0.0003, 0.1, 0.001), 0.00001
#: Blocks that one move takes along at most.
_CLUSTER = 12
#: What one capacity's worth of bytes too many costs, in largest loads.
_PENALTY = 10.0


def applies(problem: Problem) -> bool:
    """Throughput with more than one target."""
    return problem.objective == "throughput" and problem.n_targets > 1


def pipeline_local(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Anneal the targets of blocks, from the best plan so far: moves, swaps and moves of connected blocks.

    The largest load is smoothed by the 16-norm of all loads, so that a move which relieves any but the
    largest counts too. Where each target may have one partition, targets keep the order of the best plan and
    blocks move along it.

    Source: S. Kirkpatrick et al., "Optimization by Simulated Annealing", Science 220 (1983); moves as in
    B. W. Kernighan and S. Lin, "An Efficient Heuristic Procedure for Partitioning Graphs", 1970.
    """
    contiguous = is_contiguous(problem)
    if contiguous and best.proposal is None:
        return
    found = blocks(problem, closed=contiguous)
    p = found.pipeline
    rng = np.random.default_rng(seed)
    rank = np.empty(0, np.int32)
    start = np.argmin(p.time, axis=1).astype(np.int32)
    first = np.unique(found.block, return_index=True)[1]
    if best.proposal is not None:
        start = best.proposal.assignment.target[first].astype(np.int32)
        if contiguous:
            rank = _ranks(problem, best)
    around = neighbours(found.graph)
    limits = Limits(p.capacity.copy(), problem.max_error)
    rounds, coolings = _ROUNDS, itertools.cycle(_HOT)
    now = state(p, start)
    if best.proposal is None:
        best.offer(partitioned(problem, targets_of(found, start)), "each unit on its quickest target")
    while not budget.is_spent and not best.is_optimal:
        hot = next(coolings)
        for number in range(rounds):
            if budget.is_spent or best.is_optimal:
                return
            heat = hot * (_COLD / hot) ** (number / rounds)
            reached, target = anneal(
                p,
                found.graph,
                around,
                now,
                rank,
                limits,
                best.objective,
                heat,
                _STEPS,
                int(rng.integers(1 << 31)),
            )
            if reached < best.objective * (1 - 1e-12):
                offered = best.offer(
                    partitioned(problem, targets_of(found, target)), "annealing of a pipeline"
                )
                if not np.isfinite(offered):
                    _tighten(limits, best)
            now = state(p, now.target)
        rounds = min(2 * rounds, _MOST_ROUNDS)
        if best.proposal is not None and rng.random() < 0.7:
            now = state(p, best.proposal.assignment.target[first].astype(np.int32))


def _tighten(limits: Limits, best: Best) -> None:
    """Leave room for what annealing does not see: tensors and workspace of the plan that was refused."""
    assert best.rejected is not None
    over = best.rejected.peaks - best.problem.capacity
    limits.capacity[:] -= np.where(np.isfinite(over) & (over > 0), over, 0.0)
    np.maximum(limits.capacity, 0.0, out=limits.capacity)


class Limits(NamedTuple):
    """What a plan may use.

    Attributes:
        capacity: float64[m]: bytes.
        error: Sum.
    """

    capacity: Floats
    error: float


def neighbours(graph: Dag) -> tuple[Small, Small]:
    """Blocks that feed or read each block: ``units[at[u]:at[u + 1]]``."""
    n = len(graph.after_at) - 1
    return _both(n, graph.after_at, graph.after, graph.before_at, graph.before)


def _ranks(problem: Problem, best: Best) -> Small:
    """Place of each target in the order of the best plan; unused ones last."""
    assert best.proposal is not None
    target, partition = best.proposal.assignment.target, best.proposal.assignment.partition
    rank = np.full(problem.n_targets, -1, np.int32)
    rank[target] = partition
    unused = np.flatnonzero(rank < 0)
    rank[unused] = rank.max() + 1 + np.arange(len(unused))
    return rank


@compiled
def _both(n: int, after_at: Small, after: Small, before_at: Small, before: Small) -> tuple[Small, Small]:
    at = (after_at + before_at).astype(np.int32)
    units = np.empty(at[n], np.int32)
    for u in range(n):
        fill = at[u]
        for place in range(after_at[u], after_at[u + 1]):
            units[fill] = after[place]
            fill += 1
        for place in range(before_at[u], before_at[u + 1]):
            units[fill] = before[place]
            fill += 1
    return at, units


@compiled
def _energy(loads: Floats, used: Floats, error: float, limits: Limits, scale: float) -> float:
    """16-norm of the loads over ``scale``, and the penalty for what is too much."""
    total = 0.0
    for load in loads:
        share = load / scale
        share *= share
        share *= share
        share *= share
        total += share * share
    norm = float(np.sqrt(np.sqrt(np.sqrt(np.sqrt(total)))))
    return norm + _PENALTY * _excess(used, error, limits)


@compiled
def _excess(used: Floats, error: float, limits: Limits) -> float:
    over = 0.0
    for m in range(len(used)):
        if used[m] > limits.capacity[m]:
            over += (used[m] - limits.capacity[m]) / max(limits.capacity[m], 1.0)
    if error > limits.error:
        over += (error - limits.error) / max(limits.error, 1e-12)
    return over


@compiled
def _fits(graph: Dag, target: Small, rank: Small, u: int, b: int) -> bool:
    """Whether block u can be on target b with all tensors going up the ranks."""
    if len(rank) == 0:
        return True
    for at in range(graph.before_at[u], graph.before_at[u + 1]):
        if rank[target[graph.before[at]]] > rank[b]:
            return False
    for at in range(graph.after_at[u], graph.after_at[u + 1]):
        if rank[target[graph.after[at]]] < rank[b]:
            return False
    return True


@compiled
def anneal(
    p: Pipeline,
    graph: Dag,
    around: tuple[Small, Small],
    now: State,
    rank: Small,
    limits: Limits,
    scale: float,
    heat: float,
    steps: int,
    seed: int,
) -> tuple[float, Small]:
    """Anneal at one temperature; ``now`` is where it stands, before and after.

    Args:
        p: The pipeline.
        graph: Its blocks.
        around: See :func:`neighbours`.
        now: Changed in place.
        rank: int32[t]: place of each target, which tensors must not go down; empty for any.
        limits: Bytes and error.
        scale: Only plans whose largest load is below this are kept; also the unit of temperature, if finite.
        heat: Temperature, as a share of the largest load.
        steps: Moves tried.
        seed: Of the random numbers.

    Returns:
        The least largest load below ``scale`` of a plan within the limits, infinite where there was none;
        and its targets.
    """
    np.random.seed(seed)
    n, t = p.time.shape
    near_at, near = around
    best, reached = now.target.copy(), scale
    is_found = False
    unit = now.loads.max() if not np.isfinite(scale) else scale
    unit = max(unit, 1e-300)
    if not np.isfinite(unit):
        return np.inf, best
    energy = _energy(now.loads, now.used, now.error[0], limits, unit)
    moved, origin = np.empty(_CLUSTER + 1, np.int32), np.empty(_CLUSTER + 1, np.int32)
    loads, used = now.loads.copy(), now.used.copy()
    for _ in range(steps):
        u = np.random.randint(n)
        a = now.target[u]
        b = np.random.randint(t)
        if np.random.random() < 0.75 and near_at[u + 1] > near_at[u]:
            b = now.target[near[near_at[u] + np.random.randint(near_at[u + 1] - near_at[u])]]
        if a == b or not np.isfinite(p.time[u, b]):
            continue
        loads[:] = now.loads
        used[:] = now.used
        error = now.error[0]
        count, is_legal = 0, True
        kind = np.random.random()
        size = 1
        if kind < 0.3:
            size = 2 + np.random.randint(_CLUSTER - 2)
        moved[0], origin[0] = u, a
        count = 1
        is_legal = _fits(graph, now.target, rank, u, b)
        if is_legal:
            move(p, now, u, b)
            look = 0
            while count < size and look < count:
                centre = moved[look]
                look += 1
                for at in range(near_at[centre], near_at[centre + 1]):
                    w = near[at]
                    if count == size:
                        break
                    if (
                        now.target[w] == a
                        and np.isfinite(p.time[w, b])
                        and np.random.random() < 0.8
                        and _fits(graph, now.target, rank, w, b)
                    ):
                        moved[count], origin[count] = w, a
                        count += 1
                        move(p, now, w, b)
            if kind > 0.8:
                w = np.random.randint(n)
                if (
                    now.target[w] == b
                    and w != u
                    and np.isfinite(p.time[w, a])
                    and _fits(graph, now.target, rank, w, a)
                ):
                    moved[count], origin[count] = w, b
                    count += 1
                    move(p, now, w, a)
        else:
            continue
        after = _energy(now.loads, now.used, now.error[0], limits, unit)
        if after <= energy or np.random.random() < np.exp((energy - after) / heat):
            energy = after
            highest = now.loads.max()
            if highest < reached and _excess(now.used, now.error[0], limits) <= 0:
                reached, is_found = highest, True
                best[:] = now.target
            continue
        while count:
            count -= 1
            move(p, now, moved[count], origin[count])
        now.loads[:] = loads
        now.used[:] = used
        now.error[0] = error
    return reached if is_found else np.inf, best
