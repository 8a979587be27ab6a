"""All plans of a tiny problem, by branch and bound: the optimum with its proof, or that there is no plan."""

from __future__ import annotations

import numpy as np

from hal.errors import InternalError
from hal.planning.compiled import compiled
from hal.planning.domains import domains
from hal.planning.exhaustive_bounds import lowest, peaks
from hal.planning.exhaustive_steps import (
    ENERGY,
    LATENCY,
    MEMORY,
    SUM_ENERGY,
    SUM_ERROR,
    SUM_LATENCY,
    THROUGHPUT,
    State,
    Tiny,
    added,
    is_true,
    open_tensors,
)
from hal.planning.flat import CHARGE_TARGET, Flat, flat
from hal.planning.problem import Assignment, Floats, Ints, Problem
from hal.planning.search import Best, Budget

#: Units up to which all plans are tried. It is what the search is tested for against brute force.
MOST_UNITS = 12

_OBJECTIVES = {"latency": LATENCY, "throughput": THROUGHPUT, "energy": ENERGY, "memory": MEMORY}
#: Steps between two looks at the clock, a few milliseconds.
_STEPS = 5_000
#: Numbers that the table of beginnings holds: 16 MB.
_TABLE = 1 << 21
#: Beginnings with one hash that are kept.
_WAYS = 4
#: Relative difference below which a plan is no improvement, far below the tolerance of an optimum.
_SAME = 1e-12
_DONE, _FOUND, _GOING = 0, 1, 2


def applies(problem: Problem) -> bool:
    """Whether the problem is small enough."""
    return problem.n_units <= MOST_UNITS


def exhaustive(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer ever better plans until there is none, and prove the last one optimal.

    Exact for every objective and constraint, within the budget. The result tells nothing where the budget
    ends first; use :func:`search` to learn whether it did.
    """
    search(problem, best, budget)


def search(problem: Problem, best: Best, budget: Budget, free: Floats | None = None) -> tuple[bool, float]:
    """Depth-first branch and bound over beginnings of plans, partition by partition.

    A beginning is left where no end of it can be better than the best plan (``lowest``), or
    where another beginning with the same units is nowhere worse: durations enter sums and maxima only, so
    what is no worse now is no worse in the end. Where activations bind that does not hold, because a tensor's
    life depends on times in both directions; there, neighbours that do not touch each other run in the order
    of their first units only, because the other order is the same plan.

    Args:
        problem: At most :data:`MOST_UNITS` units.
        best: What to improve.
        budget: Of time.
        free: float64[m]: bytes of each pool that are not counted; with the objective memory, whose capacity
            should be infinite then. The objective is the sum of what passes them, and plans are not offered,
            because it is not the problem's.

    Returns:
        Whether all plans were tried, and the best value.

    Source: A. H. Land and A. G. Doig, "An automatic method of solving discrete programming problems",
    Econometrica 28 (1960); dominance as in M. Held and R. M. Karp, "A dynamic programming approach to
    sequencing problems", J. SIAM 10 (1962); static order of the max-plus system as in
    :mod:`hal.planning.problem`.
    """
    small = _in_order(problem)
    if not domains(small).any(axis=1).all():
        return True, best.objective
    f, k, st = flat(small), _tiny(small, free), _state(small)
    frames = np.zeros((small.n_units + 1, 4), np.int64)
    columns = len(_signature(f, k, st, 0)) + 1
    table = np.full((max(_TABLE // columns // _WAYS, 64), _WAYS, columns), np.nan)
    value = best.objective if free is None else np.inf
    depth = 0
    while True:
        status, depth, value = _advance(f, k, st, frames, table, depth, value, _STEPS)
        if status == _FOUND and free is None:
            plan = _back(problem, st, depth + 1)
            if not np.isfinite(best.offer(plan, "exhaustive", value)):
                raise InternalError(
                    f"the exhaustive search made a plan that breaks {best.rejected}; report it"
                )
            value = min(value, best.objective)
        if status == _DONE:
            if free is None and best.proposal is not None:
                best.prove(best.objective, "all plans tried")
            return True, value
        if budget.is_spent:
            return False, value


def _in_order(problem: Problem) -> Problem:
    """The same problem, its units numbered in topological order."""
    order = problem.order
    position = np.empty(problem.n_units, np.int64)
    position[order] = np.arange(problem.n_units)
    return problem.replace(
        time=problem.time[order],
        energy=problem.energy[order],
        weight_bytes=problem.weight_bytes[order],
        workspace_bytes=problem.workspace_bytes[order],
        error=problem.error[order],
        same_device=problem.same_device[order],
        producer=np.where(problem.producer >= 0, position[problem.producer], problem.producer),
        read_unit=position[problem.read_unit],
        unit_names=tuple(problem.unit_names[unit] for unit in order),
        reasons={},
    )


def _tiny(problem: Problem, free: Floats | None) -> Tiny:
    n = problem.n_units
    needs = np.zeros(n, np.int64)
    for x, unit in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
        if problem.producer[x] >= 0:
            needs[unit] |= 1 << int(problem.producer[x])
    by_unit = problem.start == "unit"
    is_tight = problem.objective == "memory" or activations_bind(problem)
    has_ports = problem.overlap and (problem.send_port or problem.receive_port or (problem.link >= 0).any())
    one_queue = problem.n_pools == problem.n_silicons == 1 and int(problem.slots[0]) == 1
    return Tiny(
        can=domains(problem),
        needs=needs,
        group=problem.same_device,
        pool=problem.pool,
        tensor_bytes=problem.tensor_bytes,
        weight_bytes=problem.weight_bytes,
        workspace_bytes=problem.workspace_bytes,
        error=problem.error,
        capacity=problem.capacity,
        free=np.zeros(problem.n_pools) if free is None else np.asarray(free, np.float64),
        part_limit=np.zeros_like(problem.partitions_per_target) if by_unit else problem.partitions_per_target,
        max_parts=0 if by_unit else problem.max_partitions,
        max_error=problem.max_error,
        objective=_OBJECTIVES[problem.objective],
        is_tight=bool(is_tight),
        in_order=by_unit and not is_tight and problem.objective in ("throughput", "energy"),
        has_ports=bool(has_ports),
        one_queue=one_queue,
        keeps_times=bool(not is_tight or one_queue),
    )


def activations_bind(problem: Problem) -> bool:
    """Whether tensors and workspaces can make a pool too small, whatever the plan's weights."""
    beside = float(problem.tensor_bytes.sum()) + float(problem.workspace_bytes.max(axis=1).sum())
    if beside == 0:
        return False
    heaviest = np.stack(
        [
            np.where(problem.pool == pool, problem.weight_bytes, 0).max(axis=1).sum()
            for pool in range(problem.n_pools)
        ]
    )
    return bool((heaviest + beside > problem.capacity).any())


def _state(problem: Problem) -> State:
    n, t, s, v = problem.n_units, problem.n_targets, problem.n_silicons, problem.n_tensors
    rows = n + 1
    slots = min(max(1, int(problem.slots.max())), n)
    links = int(problem.link.max()) + 1
    return State(
        target=np.full((rows, n), -1, np.int64),
        partition=np.full((rows, n), -1, np.int64),
        must=np.full((rows, n), -1, np.int64),
        start=np.zeros((rows, n)),
        end=np.zeros((rows, n)),
        slot_free=np.zeros((rows, s, slots)),
        send_free=np.zeros((rows, s)),
        receive_free=np.zeros((rows, s)),
        link_free=np.zeros((rows, links)),
        load=np.zeros((rows, 3 * s + links)),
        arrived=np.full((rows, v, t), -1.0),
        comes=np.full((rows, v, t), np.inf),
        leaves=np.zeros((rows, v)),
        weight=np.zeros((rows, problem.n_pools)),
        used=np.zeros((rows, t), np.int64),
        sums=np.zeros((rows, 3)),
        sent=np.full((rows, v), -1, np.int64),
        mask=np.zeros(rows, np.int64),
        last=np.zeros(rows, np.int64),
    )


def _back(problem: Problem, st: State, d: int) -> Assignment:
    """Row d as an assignment of the problem's own units."""
    target, partition = np.empty(problem.n_units, np.int32), np.empty(problem.n_units, np.int32)
    target[problem.order] = st.target[d]
    partition[problem.order] = st.partition[d]
    return Assignment(target, partition)


@compiled
def _advance(
    f: Flat, k: Tiny, st: State, frames: Ints, table: Floats, depth: int, best: float, steps: int
) -> tuple[int, int, float]:
    """Go on with the search for some steps.

    Args:
        f: The problem.
        k: More of it.
        st: Beginnings, a row for each depth.
        frames: int64[rows, 4]: what was last tried after each row: target, units, tensors sent, their number.
        table: float64[rows, ways, columns]: beginnings seen.
        depth: Row to go on from.
        best: Value of the best plan.
        steps: How many.

    Returns:
        A status; the depth to go on from; the value of the plan found, which is in the next row.
    """
    n = f.time.shape[0]
    full = (1 << n) - 1
    limit = best * (1 - _SAME)
    open_ = np.empty(len(f.producer) + 1, np.int64)
    for _ in range(steps):
        if depth < 0:
            return _DONE, depth, best
        frame = frames[depth]
        frame[2] += 1
        if frame[1] == 0 or frame[2] >= 1 << frame[3]:
            if not _next(f, k, st, depth, frame):
                frame[:] = 0
                depth -= 1
                continue
            frame[2] = 0
            frame[3] = open_tensors(f, st, depth, frame[1], frame[0], open_)
        else:
            open_tensors(f, st, depth, frame[1], frame[0], open_)
        b, chosen = frame[0], frame[1]
        if not k.keeps_times and not k.has_ports and _is_swapped(f, k, st, depth, chosen, b):
            continue
        if not added(f, k, st, depth, chosen, b, frame[2], open_, frame[3]):
            continue
        bound = lowest(f, k, st, depth + 1)
        if bound >= limit:
            continue
        if st.mask[depth + 1] == full:
            if is_true(f, st, depth + 1):
                return _FOUND, depth, bound
            continue
        if _is_dominated(f, k, st, depth + 1, table):
            continue
        depth += 1
        frames[depth][:] = 0
    return _GOING, depth, best


@compiled
def _next(f: Flat, k: Tiny, st: State, d: int, frame: Ints) -> bool:
    """Put the next target and set of units into a frame; False where all were tried.

    A set is closed: what feeds its units is placed or in it. Units are added in topological order, so each
    set comes once.
    """
    n, n_targets = f.time.shape[0], f.time.shape[1]
    mask = st.mask[d]
    while frame[0] < n_targets:
        b, chosen = frame[0], frame[1]
        highest = -1
        for unit in range(n):
            if chosen >> unit & 1:
                highest = unit
        grows = not f.by_unit
        while True:
            if grows or chosen == 0:
                for unit in range(highest + 1, n):
                    if (mask | chosen) >> unit & 1:
                        continue
                    fits = k.can[unit, b] and (st.must[d, unit] < 0 or st.must[d, unit] == b)
                    if fits and k.needs[unit] & ~(mask | chosen) == 0:
                        frame[1] = chosen | 1 << unit
                        return True
                    if k.in_order:
                        break
            if chosen == 0:
                break
            # The last unit goes, and others come in its place.
            for unit in range(n):
                if chosen >> unit & 1:
                    highest = unit
            chosen ^= 1 << highest
            grows = not f.by_unit or chosen == 0
            if k.in_order:
                break
        frame[0] += 1
        frame[1] = 0
    return False


@compiled
def _is_swapped(f: Flat, k: Tiny, st: State, d: int, chosen: int, b: int) -> bool:
    """Whether the last partition and this one could as well run in the other order, which is tried too."""
    last = st.last[d]
    if last == 0:
        return False
    lowest_bit, lowest_last = chosen & -chosen, last & -last
    if lowest_bit > lowest_last:
        return False
    a = -1
    for unit in range(f.time.shape[0]):
        if last >> unit & 1:
            a = st.target[d, unit]
    if f.silicon[a] == f.silicon[b] and f.slots[f.silicon[b]] > 0:
        return False
    if a == b and f.charge == CHARGE_TARGET:
        return False
    needed = 0
    for unit in range(f.time.shape[0]):
        if chosen >> unit & 1:
            needed |= k.needs[unit]
    return bool(needed & last == 0)


@compiled
def _is_dominated(f: Flat, k: Tiny, st: State, d: int, table: Floats) -> bool:
    """Whether a beginning in the table is nowhere worse than row d; else row d goes into the table."""
    if not k.keeps_times:
        return False
    mine = _signature(f, k, st, d)
    n_keys = int(mine[0])
    code = np.uint64(1469598103934665603)
    for at in range(1, n_keys):
        code = (code ^ np.uint64(np.int64(mine[at]) + 7)) * np.uint64(1099511628211)
        code ^= code >> np.uint64(29)
    bucket = table[int(code % np.uint64(len(table)))]
    place = -1
    for way in range(len(bucket)):
        other = bucket[way]
        if np.isnan(other[0]):
            place = way
            break
        same = True
        for at in range(n_keys):
            if other[at] != mine[at]:
                same = False
                break
        if not same:
            continue
        is_better, is_worse = True, True
        for at in range(n_keys, len(mine)):
            is_better = is_better and other[at] <= mine[at]
            is_worse = is_worse and mine[at] <= other[at]
        if is_better:
            return True
        if is_worse:
            place = way
            break
    if place < 0:
        # The oldest goes: the last column counts.
        place = int(bucket[0, -1]) % len(bucket)
        bucket[0, -1] += 1
    count = bucket[0, -1]
    bucket[place, : len(mine)] = mine
    bucket[0, -1] = 0 if np.isnan(count) else count
    return False


@compiled
def _signature(f: Flat, k: Tiny, st: State, d: int) -> Floats:
    """Row d in numbers: how many have to be equal, these, and those that are the better the smaller they are.

    Times matter only where the objective is made of them, and only those that what follows can see.
    """
    n, n_targets, n_tensors = f.time.shape[0], f.time.shape[1], len(f.producer)
    by_target = f.charge == CHARGE_TARGET
    needs_times = k.objective == LATENCY
    n_keys = 2 + 3 * n + (n_tensors * n_targets if by_target else 0)
    found = np.zeros(
        n_keys
        + n
        + (n_tensors * n_targets if by_target else 0)
        + st.slot_free[d].size
        + 2 * len(f.slots)
        + len(st.link_free[d])
        + len(st.load[d])
        + 2 * len(st.weight[d])
        + n_targets
        + 4
    )
    found[0], found[1] = n_keys, st.mask[d]
    mask = st.mask[d]
    at = n_keys
    position = 2 + 2 * n
    highest = st.used[d].sum()
    for unit in range(n):
        if not mask >> unit & 1:
            found[2 + unit] = st.must[d, unit] + 1
            continue
        if not _is_live(f, mask, unit):
            continue
        found[2 + n + unit] = st.target[d, unit] + 1
        if needs_times:
            found[at + unit] = st.end[d, unit]
    if k.has_ports and needs_times:
        for p in range(highest):
            for unit in range(n):
                if st.partition[d, unit] == p and mask >> unit & 1 and _is_live(f, mask, unit):
                    found[position] = unit + 1
                    position += 1
    at += n
    if by_target:
        for x in range(n_tensors):
            is_read = False
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                is_read = is_read or not mask >> f.readers[at_reader] & 1
            if is_read:
                for b in range(n_targets):
                    if st.arrived[d, x, b] >= 0:
                        found[2 + 3 * n + x * n_targets + b] = 1
                        if needs_times:
                            found[at + x * n_targets + b] = st.arrived[d, x, b]
        at += n_tensors * n_targets
    if needs_times:
        for s in range(len(f.slots)):
            for slot in range(st.slot_free.shape[2]):
                found[at] = st.slot_free[d, s, slot]
                at += 1
            found[at], found[at + 1] = st.send_free[d, s], st.receive_free[d, s]
            at += 2
        for link in range(len(st.link_free[d])):
            found[at] = st.link_free[d, link]
            at += 1
        found[at] = st.sums[d, SUM_LATENCY]
        at += 1
    elif k.objective == THROUGHPUT:
        found[at : at + len(st.load[d])] = st.load[d]
        at += len(st.load[d])
    elif k.objective == ENERGY:
        found[at] = st.sums[d, SUM_ENERGY]
        at += 1
    if np.isfinite(k.max_error):
        found[at] = st.sums[d, SUM_ERROR]
        at += 1
    for m in range(len(k.capacity)):
        if np.isfinite(k.capacity[m]) or k.objective == MEMORY:
            found[at] = st.weight[d, m]
            at += 1
    if k.is_tight:
        now = peaks(f, k, st, d)
        found[at : at + len(now)] = now
        at += len(now)
    if k.max_parts > 0:
        found[at] = highest
        at += 1
    for b in range(n_targets):
        if k.part_limit[b] > 0:
            found[at] = st.used[d, b]
            at += 1
    return found


@compiled
def _is_live(f: Flat, mask: int, unit: int) -> bool:
    """Whether a unit that is not placed yet reads what a unit makes."""
    for at in range(f.made_at[unit], f.made_at[unit + 1]):
        x = f.made[at]
        for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
            if not mask >> f.readers[at_reader] & 1:
                return True
    return False
