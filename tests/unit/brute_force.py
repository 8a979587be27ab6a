"""The optimum of tiny problems, by trying every plan.

The space searched is every :class:`~hal.planning.problem.Assignment` that can be carried out: every ordered
division of the units into partitions whose numbers never fall along a tensor's way, with every target that
can compute all units of a partition. Nothing is assumed to be good: partitions need not be convex or
connected, and silicons may stay empty. Of plans that differ only in the numbers of two neighbours which share
no silicon, no tensor and no port or link, one is tried: each silicon, port and link sees the same order in
both, so they are the same plan. No bound prunes; each plan is judged whole, by all four objectives at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.check import peaks_of
from hal.planning.compiled import compiled
from hal.planning.evaluate import walk
from hal.planning.flat import CHARGE_TARGET, Flat, flat
from hal.planning.problem import OBJECTIVES, OUTSIDE, Assignment, Problem
from hal.planning.violations import SLACK


class TooMany(Exception):
    """There are more plans than the caller wants tried."""


class Optimum(NamedTuple):
    """The least value of an objective and a plan that has it; infinite and None where no plan is legal."""

    value: float
    assignment: Assignment | None


class _Limits(NamedTuple):
    """Constraints of the problem, and per unit the bit set of the units that it reads from."""

    pool: np.ndarray
    tensor_bytes: np.ndarray
    weight_bytes: np.ndarray
    workspace_bytes: np.ndarray
    capacity: np.ndarray
    same_device: np.ndarray
    error: np.ndarray
    max_error: float
    max_partitions: int
    per_target: np.ndarray
    reads_from: np.ndarray
    has_queues: bool


def optima(problem: Problem, most: int = 300_000) -> tuple[dict[str, Optimum], int]:
    """The optimum for each objective, and how many plans were tried.

    Raises:
        TooMany: There are more than `most`, or they lie far apart in the choices that lead to them.
    """
    n = problem.n_units
    reads_from = np.zeros(n, np.int64)
    for tensor, reader in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
        if (maker := int(problem.producer[tensor])) != OUTSIDE:
            reads_from[reader] |= 1 << maker
    counts = problem.start == "partition"
    limits = _Limits(
        pool=problem.pool,
        tensor_bytes=problem.tensor_bytes,
        weight_bytes=problem.weight_bytes,
        workspace_bytes=problem.workspace_bytes,
        capacity=problem.capacity,
        same_device=problem.same_device,
        error=problem.error,
        max_error=float(problem.max_error),
        max_partitions=problem.max_partitions if counts else 0,
        per_target=problem.partitions_per_target * int(counts),
        reads_from=reads_from,
        has_queues=problem.send_port or problem.receive_port or bool((problem.link >= 0).any()),
    )
    values, targets, partitions, tried = _all_plans(flat(problem), limits, most)
    if tried > most:
        raise TooMany
    found = {
        name: Optimum(
            float(values[at]), Assignment(targets[at], partitions[at]) if np.isfinite(values[at]) else None
        )
        for at, name in enumerate(OBJECTIVES)
    }
    return found, int(tried)


@compiled
def _all_plans(f: Flat, limits: _Limits, most: int):  # type: ignore[no-untyped-def]
    """Depth first over partitions in the order of their numbers."""
    n, t = f.time.shape
    best = np.full(4, np.inf)
    best_target, best_partition = np.zeros((4, n), np.int32), np.zeros((4, n), np.int32)
    target, partition = np.zeros(n, np.int32), np.zeros(n, np.int32)
    chosen, on = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    placed = np.zeros(n + 2, np.int64)
    everything = (np.int64(1) << n) - 1
    tried = steps = 0
    depth = 0
    chosen[0], on[0] = everything, -1
    while depth >= 0:
        steps += 1
        if steps > 30 * most:
            tried = most + 1
            break
        # The next choice of this depth: the next target, then the next smaller subset of what is left.
        on[depth] += 1
        left = everything & ~placed[depth]
        if on[depth] == t:
            on[depth] = 0
            chosen[depth] = (chosen[depth] - 1) & left
            if not chosen[depth]:
                depth -= 1
                continue
        if not _is_legal(f, limits, chosen, on, placed, depth):
            continue
        for unit in range(n):
            if chosen[depth] >> unit & 1:
                target[unit], partition[unit] = on[depth], depth
        placed[depth + 1] = placed[depth] | chosen[depth]
        if placed[depth + 1] != everything:
            depth += 1
            chosen[depth], on[depth] = everything & ~placed[depth], -1
            continue
        tried += 1
        if tried > most:
            break
        error = 0.0
        for unit in range(n):
            error += limits.error[unit, target[unit]]
        if error > limits.max_error * (1 + SLACK):
            continue
        starts, ends = np.empty(depth + 1), np.empty(depth + 1)
        comes, leaves = np.full((len(f.producer), t), np.inf), np.zeros(len(f.producer))
        latency, throughput, energy = walk(f, target, partition, starts, ends, comes, leaves)
        n_pools = len(limits.capacity)
        peaks = peaks_of(
            f,
            limits.pool,
            limits.tensor_bytes,
            limits.weight_bytes,
            limits.workspace_bytes,
            n_pools,
            target,
            partition,
            starts,
            ends,
            comes,
            leaves,
        )
        fits = True
        for pool in range(n_pools):
            fits = fits and peaks[pool] <= limits.capacity[pool] * (1 + SLACK)
        if not fits:
            continue
        for at, value in enumerate((latency, throughput, energy, peaks.sum())):
            if value < best[at]:
                best[at] = value
                best_target[at], best_partition[at] = target, partition
    return best, best_target, best_partition, tried


@compiled
def _is_legal(f: Flat, limits: _Limits, chosen, on, placed, depth):  # type: ignore[no-untyped-def]
    """Whether the partition of this depth may follow those before it, and is not a repetition."""
    units, b = chosen[depth], on[depth]
    n = f.time.shape[0]
    if f.by_unit and units & (units - 1):
        return False
    if limits.max_partitions and depth >= limits.max_partitions:
        return False
    if limits.per_target[b]:
        used = 1
        for before in range(depth):
            used += on[before] == b
        if used > limits.per_target[b]:
            return False
    for unit in range(n):
        if not units >> unit & 1:
            continue
        if not np.isfinite(f.time[unit, b]) or limits.reads_from[unit] & ~(placed[depth] | units):
            return False
        if limits.same_device[unit] >= 0:
            for other in range(n):
                if limits.same_device[other] != limits.same_device[unit] or not placed[depth] >> other & 1:
                    continue
                for before in range(depth):
                    if chosen[before] >> other & 1 and on[before] != b:
                        return False
    if not depth:
        return True
    # Neighbours that could change places: only the one with the lower first unit in front is tried.
    earlier, a = chosen[depth - 1], on[depth - 1]
    if (earlier & -earlier) < (units & -units):
        return True
    s = f.silicon[b]
    if f.silicon[a] == s and (f.slots[s] != 0 or f.charge == CHARGE_TARGET):
        return True
    for unit in range(n):
        if units >> unit & 1 and limits.reads_from[unit] & earlier:
            return True
    return (
        limits.has_queues
        and _comes_from_afar(f, limits, chosen, on, depth)
        and _comes_from_afar(f, limits, chosen, on, depth - 1)
    )


@compiled
def _comes_from_afar(f: Flat, limits: _Limits, chosen, on, depth):  # type: ignore[no-untyped-def]
    """Whether the partition of this depth reads anything that another silicon made."""
    for before in range(depth):
        if f.silicon[on[before]] == f.silicon[on[depth]]:
            continue
        for unit in range(f.time.shape[0]):
            if chosen[depth] >> unit & 1 and limits.reads_from[unit] & chosen[before]:
                return True
    return False
