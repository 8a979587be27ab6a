"""Which constraints an assignment breaks, and by how much; and what memory it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hal.planning import violations
from hal.planning.compiled import compiled
from hal.planning.evaluate import Values, walk
from hal.planning.flat import CHARGE_TARGET, Flat, flat
from hal.planning.problem import Assignment, Floats, Ints, Problem, Small
from hal.planning.violations import Violation as Violation


class Checked(NamedTuple):
    """An assignment's values, memory and violations.

    Attributes:
        values: Objectives; infinite where the order or a target is not legal.
        peaks: float64[m]: highest use of each pool, bytes.
        violations: Empty where every constraint holds.
    """

    values: Values
    peaks: Floats
    violations: tuple[Violation, ...]

    def objective(self, problem: Problem) -> float:
        """The value of the problem's objective."""
        if problem.objective == "memory":
            return float(self.peaks.sum())
        return float(getattr(self.values, problem.objective))


def check(problem: Problem, assignment: Assignment) -> Checked:
    """Values, memory and violations of an assignment."""
    f = flat(problem)
    target, partition = assignment.target, assignment.partition
    found = _shape(problem, assignment)
    if found:
        return _nothing(problem, found)
    found = list(_static(problem, assignment))
    n_partitions = assignment.n_partitions
    starts, ends = np.empty(n_partitions), np.empty(n_partitions)
    comes = np.full((problem.n_tensors, problem.n_targets), np.inf)
    leaves = np.zeros(problem.n_tensors)
    values = Values(*walk(f, target, partition, starts, ends, comes, leaves))
    if not np.isfinite(values.latency):
        return _nothing(problem, found)
    peaks = peaks_of(
        f,
        problem.pool,
        problem.tensor_bytes,
        problem.weight_bytes,
        problem.workspace_bytes,
        problem.n_pools,
        target,
        partition,
        starts,
        ends,
        comes,
        leaves,
    )
    found += [
        violations.memory(problem, pool, float(peaks[pool]))
        for pool in range(problem.n_pools)
        if violations.is_over(float(peaks[pool]), float(problem.capacity[pool]))
    ]
    return Checked(values, peaks, tuple(found))


def _nothing(problem: Problem, found: list[Violation]) -> Checked:
    """What an assignment that cannot be carried out is worth."""
    return Checked(Values(np.inf, np.inf, np.inf), np.full(problem.n_pools, np.inf), tuple(found))


def _shape(problem: Problem, assignment: Assignment) -> list[Violation]:
    """Whether the numbers are numbers of targets and partitions at all; nothing else may be asked before."""
    target, partition = assignment.target, assignment.partition
    n = problem.n_units
    if len(target) != n or len(partition) != n:
        return [violations.sizes(n, len(target), len(partition))]
    if target.min() < 0 or target.max() >= problem.n_targets:
        return [violations.range_of_targets(problem, int(target.min()), int(target.max()))]
    if partition.min() < 0 or partition.max() >= n or not np.bincount(partition).all():
        return [violations.gaps()]
    return []


def _static(problem: Problem, assignment: Assignment) -> Iterator[Violation]:
    """What needs no times."""
    target, partition = assignment.target, assignment.partition
    n, n_partitions = problem.n_units, assignment.n_partitions
    units = np.arange(n)
    for unit in np.flatnonzero(~problem.allowed[units, target])[:3]:
        yield violations.unsupported(problem, int(unit), int(target[unit]))
    first = np.full(n_partitions, -1)
    first[partition[::-1]] = target[::-1]
    for unit in np.flatnonzero(first[partition] != target)[:1]:
        p = int(partition[unit])
        yield violations.mixed(problem, p, int(target[unit]), int(first[p]))
    made_by = problem.producer[problem.read_tensor]
    made_in = np.where(made_by < 0, -1, partition[made_by])
    read_in = partition[problem.read_unit]
    against = np.flatnonzero(made_in > read_in)
    if len(against):
        at = int(against[0])
        tensor, reader = int(problem.read_tensor[at]), int(problem.read_unit[at])
        yield violations.order(problem, tensor, reader, int(made_in[at]), int(read_in[at]), len(against))
    if problem.start == "unit" and n_partitions < n:
        yield violations.start(n, n_partitions)
    error = float(problem.error[units, target].sum())
    if violations.is_over(error, problem.max_error):
        yield violations.error(problem, error)
    if problem.start == "partition":
        if 0 < problem.max_partitions < n_partitions:
            yield violations.partitions(problem, n_partitions)
        used = np.bincount(first, minlength=problem.n_targets)
        limit = problem.partitions_per_target
        for b in np.flatnonzero((limit > 0) & (used > limit)):
            yield violations.partitions_per_target(problem, int(b), int(used[b]))
    grouped = problem.same_device >= 0
    if grouped.any():
        groups = problem.same_device[grouped]
        owner = np.full(groups.max() + 1, -1)
        owner[groups[::-1]] = target[grouped][::-1]
        for unit in np.flatnonzero(grouped)[owner[groups] != target[grouped]][:3]:
            other = int(owner[problem.same_device[unit]])
            yield violations.same_device(problem, int(unit), int(target[unit]), other)


@compiled
def peaks_of(
    f: Flat,
    pool: Ints,
    tensor_bytes: Ints,
    weight_bytes: Ints,
    workspace_bytes: Ints,
    n_pools: int,
    target: Small,
    partition: Small,
    starts: Floats,
    ends: Floats,
    comes: Floats,
    leaves: Floats,
) -> Floats:
    """Highest use of each pool, by the rules of :mod:`hal.planning.problem`."""
    n_units, n_partitions, n_tensors = len(target), len(starts), len(f.producer)
    finish = ends.max()
    fixed = np.zeros(n_pools)
    workspace = np.zeros(n_partitions)
    home = np.zeros(n_partitions, np.int64)
    for unit in range(n_units):
        b = target[unit]
        fixed[pool[b]] += weight_bytes[unit, b]
        home[partition[unit]] = pool[b]
        workspace[partition[unit]] = max(workspace[partition[unit]], workspace_bytes[unit, b])
    most = n_partitions + n_tensors * n_pools
    begin, end = np.empty(most), np.empty(most)
    size, where = np.empty(most), np.empty(most, np.int64)
    count = 0
    for p in range(n_partitions):
        if workspace[p] > 0 and ends[p] > starts[p]:
            begin[count], end[count], size[count], where[count] = starts[p], ends[p], workspace[p], home[p]
            count += 1
    low, high = np.empty(n_pools), np.empty(n_pools)
    # Partition that pays for a handoff, by reading target; with the charge "target" only the first does.
    pays = np.full(f.time.shape[1], n_partitions, np.int64)
    for x in range(n_tensors):
        if tensor_bytes[x] == 0:
            continue
        low[:], high[:] = np.inf, 0.0
        maker = f.producer[x]
        if maker >= 0:
            p = partition[maker]
            origin = pool[target[maker]]
            low[origin], high[origin] = starts[p], ends[p]
            high[origin] = max(high[origin], leaves[x])
            if f.is_output[x]:
                high[origin] = finish
        if f.charge == CHARGE_TARGET:
            for at in range(f.readers_at[x], f.readers_at[x + 1]):
                b = target[f.readers[at]]
                pays[b] = min(pays[b], partition[f.readers[at]])
        for at in range(f.readers_at[x], f.readers_at[x + 1]):
            reader = f.readers[at]
            p, b = partition[reader], target[reader]
            m = pool[b]
            low[m] = min(low[m], starts[p], comes[x, b])
            high[m] = max(high[m], ends[p])
            if maker >= 0 and pool[target[maker]] != m and (f.charge != CHARGE_TARGET or pays[b] == p):
                a = target[maker]
                if not f.overlap or f.silicon[a] == f.silicon[b]:
                    high[pool[a]] = max(high[pool[a]], ends[p])
        for at in range(f.readers_at[x], f.readers_at[x + 1]):
            pays[target[f.readers[at]]] = n_partitions
        for m in range(n_pools):
            if high[m] > low[m]:
                begin[count], end[count], size[count], where[count] = low[m], high[m], tensor_bytes[x], m
                count += 1
    return highest(begin[:count], end[:count], size[:count], where[:count], fixed)


@compiled
def highest(begin: Floats, end: Floats, size: Floats, where: Ints, fixed: Floats) -> Floats:
    """Highest use of each pool.

    Args:
        begin: float64[k]: when each piece comes.
        end: float64[k]: when it is gone; what goes at a time makes room for what comes then.
        size: float64[k]: its bytes.
        where: int[k]: its pool.
        fixed: float64[m]: bytes of each pool that are in use all the time.
    """
    peaks = fixed.copy()
    used = fixed.copy()
    by_begin, by_end = np.argsort(begin), np.argsort(end)
    gone = 0
    for at in by_begin:
        while gone < len(end) and end[by_end[gone]] <= begin[at]:
            used[where[by_end[gone]]] -= size[by_end[gone]]
            gone += 1
        used[where[at]] += size[at]
        peaks[where[at]] = max(peaks[where[at]], used[where[at]])
    return peaks
