"""Which constraints an assignment breaks, and by how much; and what memory it needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.evaluate import Values, walk
from hal.planning.flat import Flat, flat
from hal.planning.problem import Assignment, Floats, Ints, Problem, Small

#: Share by which sums of floating-point numbers may pass a limit: rounding, not a violation.
SLACK = 1e-9


class Violation(NamedTuple):
    """A constraint that does not hold.

    Attributes:
        constraint: ``order``, ``target``, ``memory``, ``error``, ``partitions``, ``partitions_per_target``,
            ``same_device`` or ``start``.
        amount: What the assignment has.
        limit: What is allowed.
        text: One sentence with the values.
    """

    constraint: str
    amount: float
    limit: float
    text: str


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
    found = list(_static(problem, assignment))
    n_partitions = assignment.n_partitions
    starts, ends = np.empty(n_partitions), np.empty(n_partitions)
    comes = np.full((problem.n_tensors, problem.n_targets), np.inf)
    leaves = np.zeros(problem.n_tensors)
    values = Values(*walk(f, target, partition, starts, ends, comes, leaves))
    if not np.isfinite(values.latency):
        if not found:
            found.append(
                Violation("order", 1, 0, "the partitions do not run in an order that their tensors allow")
            )
        return Checked(values, np.full(problem.n_pools, np.inf), tuple(found))
    peaks = _peaks(
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
        Violation(
            "memory",
            float(peaks[pool]),
            float(problem.capacity[pool]),
            f"{problem.pool_names[pool]} needs {peaks[pool]:.0f} bytes; it has {problem.capacity[pool]:.0f}",
        )
        for pool in np.flatnonzero(peaks > problem.capacity * (1 + SLACK))
    ]
    return Checked(values, peaks, tuple(found))


def _static(problem: Problem, assignment: Assignment) -> list[Violation]:
    """What needs no times."""
    target, partition = assignment.target, assignment.partition
    n = problem.n_units
    units = np.arange(n)
    found = []
    if len(target) != n or len(partition) != n:
        text = f"it places {len(target)} units in {len(partition)} partitions; expected {n} of each"
        return [Violation("target", len(target), n, text)]
    if target.min() < 0 or target.max() >= problem.n_targets:
        text = f"targets are numbered {target.min()} to {target.max()}; expected 0 to {problem.n_targets - 1}"
        return [Violation("target", float(target.max()), problem.n_targets - 1, text)]
    sizes = np.bincount(partition) if partition.min() >= 0 else np.zeros(1)
    if not sizes.all():
        return [Violation("order", 1, 0, "partitions are not numbered from 0 without gaps")]
    for unit in np.flatnonzero(~problem.allowed[units, target])[:3]:
        where = problem.target_names[target[unit]]
        why = problem.reasons.get((int(unit), int(target[unit])), "it cannot compute it")
        text = f"{problem.unit_names[unit]} is on {where}: {why}"
        found.append(Violation("target", 1, 0, text))
    first = np.full(len(sizes), -1)
    first[partition[::-1]] = target[::-1]
    if (first[partition] != target).any():
        unit = int(np.flatnonzero(first[partition] != target)[0])
        text = f"partition {partition[unit]} has units on {problem.target_names[target[unit]]} and on another"
        found.append(Violation("target", 1, 0, text))
    if problem.start == "unit" and len(sizes) < n:
        text = f"{n} units share {len(sizes)} partitions; expected one each, because units start alone"
        found.append(Violation("start", len(sizes), n, text))
    error = float(problem.error[units, target].sum())
    if error > problem.max_error * (1 + SLACK):
        text = f"the error is {error:.6g}; at most {problem.max_error:.6g} is allowed"
        found.append(Violation("error", error, problem.max_error, text))
    if problem.start == "partition":
        if 0 < problem.max_partitions < len(sizes):
            text = f"there are {len(sizes)} partitions; at most {problem.max_partitions} are allowed"
            found.append(Violation("partitions", len(sizes), problem.max_partitions, text))
        used = np.bincount(first, minlength=problem.n_targets)
        limit = problem.partitions_per_target
        for at in np.flatnonzero((limit > 0) & (used > limit)):
            text = f"{problem.target_names[at]} has {used[at]} partitions; at most {limit[at]} are allowed"
            found.append(Violation("partitions_per_target", float(used[at]), float(limit[at]), text))
    grouped = problem.same_device >= 0
    if grouped.any():
        groups = problem.same_device[grouped]
        owner = np.full(groups.max() + 1, -1)
        owner[groups[::-1]] = target[grouped][::-1]
        for unit in np.flatnonzero(grouped)[owner[groups] != target[grouped]][:3]:
            where = problem.target_names[target[unit]]
            other = problem.target_names[owner[problem.same_device[unit]]]
            text = f"{problem.unit_names[unit]} is on {where}; units of its group are on {other}"
            found.append(Violation("same_device", 1, 0, text))
    return found


@compiled
def _peaks(
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
        if workspace[p] > 0:
            begin[count], end[count], size[count], where[count] = starts[p], ends[p], workspace[p], home[p]
            count += 1
    low, high = np.empty(n_pools), np.empty(n_pools)
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
        for at in range(f.readers_at[x], f.readers_at[x + 1]):
            reader = f.readers[at]
            p, b = partition[reader], target[reader]
            m = pool[b]
            low[m] = min(low[m], starts[p], comes[x, b])
            high[m] = max(high[m], ends[p])
            if maker >= 0 and pool[target[maker]] != m:
                a = target[maker]
                if not f.overlap or f.silicon[a] == f.silicon[b]:
                    high[pool[a]] = max(high[pool[a]], ends[p])
        for m in range(n_pools):
            if high[m] > low[m]:
                begin[count], end[count], size[count], where[count] = low[m], high[m], tensor_bytes[x], m
                count += 1
    peaks = fixed.copy()
    used = fixed.copy()
    by_begin, by_end = np.argsort(begin[:count]), np.argsort(end[:count])
    gone = 0
    for at in by_begin:
        while gone < count and end[by_end[gone]] <= begin[at]:
            used[where[by_end[gone]]] -= size[by_end[gone]]
            gone += 1
        used[where[at]] += size[at]
        peaks[where[at]] = max(peaks[where[at]], used[where[at]])
    return peaks
