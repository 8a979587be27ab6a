"""The order of all units on one line, and its latency from any place on: what local search changes and asks.

Any plan is a line: its units one after the other in a topological order, each with its target, and a mark
on units that are *glued*, which run in the partition of the unit before them where that has the same target.
With ``start="unit"`` nothing is glued.

:func:`timed` computes the recursion of :func:`hal.planning.evaluate.walk` from the first place that changed,
out of a snapshot of the machine there. It ends where everything is as it was again, and gives up where the
rest of the plan cannot keep the limit. So a step of local search costs about as much as what it changes;
tests hold the two functions together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.compiled import compiled
from hal.planning.evaluate import sort
from hal.planning.flat import CHARGE_EDGE, CHARGE_TARGET, Flat, flat
from hal.planning.problem import Assignment, Floats, Ints, Problem, Small

Bools = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[Any]

#: By how much of a limit a sum of floating-point numbers may pass it by rounding alone.
_ROUNDING = 1 + 1e-11


class Line(NamedTuple):
    """A plan on a line and what was computed for it. Fields that begin with ``new`` are of a trial.

    Attributes:
        unit_at: int32[n]: the unit at each place.
        place: int32[n]: the place of each unit.
        target: int32[n].
        glued: bool[n].
        ends: float64[n]: when the partition of a unit ends.
        head: int32[n]: the first place of a unit's partition.
        taken: float64[n]: how long each partition takes, by its first place.
        machine: float64[n, w]: the state of the machine before each partition, by its first place: when each
            silicon can send, when it can receive, when each link and each slot is free.
        before: float64[n + 1]: the latency of all before a place.
        behind: float64[n + 1]: the last end of all from a place on.
        late: float64[n]: the longest path from the end of a partition, by its first place, to the end of the
            plan; :mod:`hal.planning.slack` computes it, and the next two.
        back: float64[n + 1, w']: the longest path from when each silicon can send, can receive, when each
            link and each silicon is free, as what begins from a place on sees it.
        path: float64[r]: the longest path from when a reader can have a tensor, in the order of readers.
        read_path: int32[r]: index in ``path`` of each read, in the order of reads.
        arrived: float64[v, t]: when a tensor is on a target, for ``charge="target"``; else empty.
        arrived_for: int32[v, t]: the first place of the partition that waited for it.
        fresh: float64[v]: room for paths.
        stamp: int64[v + 2]: the last partition that was charged for a tensor, counted over all trials; then
            the count, and what it was when the last trial began.
        arrived_in: int64[v, t]: that count where ``new_arrived`` was set.
        coming: int64[r]: room for the tensors that a partition waits for.
        tail: float64[n, t]: see :func:`tails`.
    """

    unit_at: Small
    place: Small
    target: Small
    glued: Bools
    ends: Floats
    head: Small
    taken: Floats
    machine: Floats
    before: Floats
    behind: Floats
    late: Floats
    back: Floats
    path: Floats
    read_path: Small
    arrived: Floats
    arrived_for: Small
    new_ends: Floats
    new_head: Small
    new_taken: Floats
    new_machine: Floats
    new_arrived: Floats
    arrived_in: Ints
    fresh: Floats
    stamp: Ints
    coming: Ints
    tail: Floats


def line(problem: Problem, target: Small, unit_at: Small, glued: Bools, tail: Floats) -> Line:
    """A line of its own arrays, with nothing computed.

    Args:
        problem: The problem.
        target: int32[n].
        unit_at: int32[n]: a topological order.
        glued: bool[n].
        tail: See :func:`tails`.
    """
    f = flat(problem)
    n, t, s = problem.n_units, problem.n_targets, problem.n_silicons
    slots = max(1, min(int(f.slots.max()), n))
    ports = 2 * s + int(f.link.max()) + 1
    arrivals = (problem.n_tensors if f.charge == CHARGE_TARGET else 0, t)
    by_tensor = np.lexsort((np.repeat(np.arange(n), np.diff(f.reads_at)), f.reads))
    read_path = np.empty(len(f.reads), np.int32)
    read_path[by_tensor] = np.arange(len(f.reads), dtype=np.int32)
    place = np.empty(n, np.int32)
    place[unit_at] = np.arange(n, dtype=np.int32)
    return Line(
        unit_at=unit_at.astype(np.int32),
        place=place,
        target=target.astype(np.int32),
        glued=glued.copy() if problem.start == "partition" else np.zeros(n, np.bool_),
        ends=np.zeros(n),
        head=np.zeros(n, np.int32),
        taken=np.zeros(n),
        machine=np.zeros((n, ports + s * slots)),
        before=np.zeros(n + 1),
        behind=np.zeros(n + 1),
        late=np.zeros(n),
        back=np.zeros((n + 1, ports + s)),
        path=np.zeros(len(f.reads)),
        read_path=read_path,
        arrived=np.zeros(arrivals),
        arrived_for=np.full(arrivals, n, np.int32),
        new_ends=np.zeros(n),
        new_head=np.zeros(n, np.int32),
        new_taken=np.zeros(n),
        new_machine=np.zeros((n + 1, ports + s * slots)),
        new_arrived=np.zeros(arrivals),
        arrived_in=np.zeros(arrivals, np.int64),
        fresh=np.zeros(problem.n_tensors),
        stamp=np.zeros(problem.n_tensors + 2, np.int64),
        coming=np.zeros(len(f.reads) + 1, np.int64),
        tail=tail,
    )


def on_a_line(problem: Problem, assignment: Assignment) -> tuple[Small, Bools]:
    """The order of an assignment's units, and which are glued."""
    position = np.empty(problem.n_units, np.int64)
    position[problem.order] = np.arange(problem.n_units)
    order = np.lexsort((position, assignment.partition)).astype(np.int32)
    glued = np.zeros(problem.n_units, np.bool_)
    glued[order[1:]] = assignment.partition[order[1:]] == assignment.partition[order[:-1]]
    return order, glued


def off_the_line(target: Small, unit_at: Small, glued: Bools) -> Assignment:
    """The assignment that a line stands for."""
    opens = ~glued[unit_at]
    opens[0] = True
    opens[1:] |= target[unit_at[1:]] != target[unit_at[:-1]]
    partition = np.empty(len(target), np.int32)
    partition[unit_at] = np.cumsum(opens) - 1
    return Assignment(target.copy(), partition)


@compiled
def fill(to: AnyArray, source: AnyArray) -> None:
    """Copy the values of one array to another of its length; ``to[:] = source`` takes seconds to compile."""
    for at in range(len(to)):
        to[at] = source[at]


@compiled
def carried(
    f: Flat, busy: Floats, receive_at: int, link_at: int, a: int, b: int, begin: float, long: float
) -> float:
    """When a handoff that overlaps ends; its ports and its link are taken until then.

    Args:
        f: The problem.
        busy: Until when send ports (from 0), receive ports and links are taken.
        receive_at: Where receive ports begin in it.
        link_at: Where links begin in it.
        a: Target that makes the tensor.
        b: Target that reads it.
        begin: When the tensor is there.
        long: How long it takes; above 0.
    """
    send, receive, link = f.silicon[a], receive_at + f.silicon[b], f.link[a, b]
    if f.send_port:
        begin = max(begin, busy[send])
    if f.receive_port:
        begin = max(begin, busy[receive])
    if link >= 0:
        begin = max(begin, busy[link_at + link])
    end = begin + long
    if f.send_port:
        busy[send] = end
    if f.receive_port:
        busy[receive] = end
    if link >= 0:
        busy[link_at + link] = end
    return end


@compiled
def tails(f: Flat) -> Floats:
    """float64[n, t]: the least time from the end of a unit's partition, on a target, to the end of the plan.

    The longest path behind the unit, each path with the targets that suit it best, without waiting for any
    device or link. A reader of the same partition costs nothing here, since the partition has ended.

    Source: the optimistic cost table of Arabnejad and Barbosa, "List Scheduling Algorithm for Heterogeneous
    Systems by an Optimistic Cost Table", IEEE TPDS 25(3), 2014.
    """
    n, t = f.time.shape
    tail = np.zeros((n, t))
    for number in range(n - 1, -1, -1):
        unit = f.order[number]
        for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[at_made]
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                reader = f.readers[at_reader]
                for a in range(t):
                    least = np.inf
                    for b in range(t):
                        path = tail[reader, b]
                        if a != b or f.by_unit:
                            path += f.time[reader, b] + f.call[b]
                        elif not np.isfinite(f.time[reader, b]):
                            path = np.inf
                        if f.overlap and f.silicon[a] != f.silicon[b]:
                            path += f.transfer[x, a, b]
                        least = min(least, path)
                    tail[unit, a] = max(tail[unit, a], least)
    return tail


@compiled
def timed(f: Flat, plan: Line, first: int, last: int, limit: float) -> tuple[float, int, int]:
    """The latency of a line that has changed between two places, and the places that were computed.

    Args:
        f: The problem.
        plan: The line; fields ``new...`` are filled in.
        first: Nothing has changed before this place, see :func:`span`.
        last: Nothing has changed after it, but when things are there; n where nothing is known.
        limit: A latency above it is not worth knowing.

    Returns:
        The latency, infinite where it is above the limit; the first place computed, and the one after the
        last.
    """
    n, n_tensors, n_silicons = len(plan.place), len(f.producer), len(f.slots)
    by_target = f.charge == CHARGE_TARGET
    restart = first
    if not f.by_unit and first > 0:
        restart = plan.head[plan.unit_at[first - 1]]
    limit *= _ROUNDING
    receive_at = n_silicons
    link_at = 2 * n_silicons
    slots_at = link_at + f.link.max() + 1
    most_slots = (plan.machine.shape[1] - slots_at) // n_silicons
    machine = plan.new_machine[n]
    for number in range(len(machine)):
        machine[number] = plan.machine[restart, number] if restart > 0 else 0.0
    plan.stamp[n_tensors + 1] = plan.stamp[n_tensors]
    latency = plan.before[restart]
    # The last places that read what ends at another time, and what another partition makes.
    far = far_head = last
    lo = restart
    while True:
        b = plan.target[plan.unit_at[lo]]
        s = f.silicon[b]
        hi = lo + 1
        if not f.by_unit:
            while hi < n and plan.glued[plan.unit_at[hi]] and plan.target[plan.unit_at[hi]] == b:
                hi += 1
        fill(plan.new_machine[lo], machine)
        ready, taken = 0.0, f.call[b]
        n_coming = 0
        plan.stamp[n_tensors] += 1
        stamp = plan.stamp[n_tensors]
        for at in range(lo, hi):
            unit = plan.unit_at[at]
            taken += f.time[unit, b]
            for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
                x = f.reads[at_read]
                maker = f.producer[x]
                key = np.int64(x)
                if maker >= 0:
                    made_at = plan.place[maker]
                    if made_at >= lo:
                        continue
                    made_in = plan.new_head[maker] if made_at >= restart else plan.head[maker]
                    key += (np.int64(made_in) + 1) * n_tensors
                if f.charge != CHARGE_EDGE:
                    if plan.stamp[x] == stamp:
                        continue
                    plan.stamp[x] = stamp
                plan.coming[n_coming] = key
                n_coming += 1
            for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
                x = f.made[at_made]
                if f.send[x, b] == 0:
                    continue
                is_wanted = f.is_output[x]
                for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                    if is_wanted:
                        break
                    is_wanted = plan.target[f.readers[at_reader]] != b
                if is_wanted:
                    taken += f.send[x, b]
        sort(plan.coming[:n_coming])
        for number in range(n_coming):
            x = plan.coming[number] % n_tensors
            maker = f.producer[x]
            is_here = False
            end, arrival = 0.0, 0.0
            if by_target:
                if plan.arrived_in[x, b] > plan.stamp[n_tensors + 1]:
                    is_here, arrival = True, plan.new_arrived[x, b]
                elif plan.arrived_for[x, b] < restart:
                    is_here, arrival = True, plan.arrived[x, b]
            if maker < 0:
                if not is_here:
                    taken += f.receive[x, b]
                    if by_target:
                        plan.new_arrived[x, b], plan.arrived_in[x, b] = 0.0, stamp
                continue
            end = plan.new_ends[maker] if plan.place[maker] >= restart else plan.ends[maker]
            a = plan.target[maker]
            if is_here:
                ready = max(ready, end if a == b else arrival)
                continue
            long = f.transfer[x, a, b]
            arrival = end
            c = f.silicon[a]
            if a != b:
                taken += f.receive[x, b]
            if c == s or not f.overlap:
                taken += long
            elif long > 0:
                arrival = carried(f, machine, receive_at, link_at, a, b, arrival, long)
            ready = max(ready, arrival)
            if by_target:
                plan.new_arrived[x, b], plan.arrived_in[x, b] = arrival, stamp
                if plan.arrived_for[x, b] == n or plan.arrived[x, b] != arrival:
                    for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                        far = max(far, plan.place[f.readers[at_reader]])
        end = ready + taken
        if f.slots[s] > 0:
            free_at = slots_at + s * most_slots
            slot = free_at
            for other in range(free_at + 1, free_at + min(f.slots[s], most_slots)):
                if machine[other] < machine[slot]:
                    slot = other
            end = max(ready, machine[slot]) + taken
            machine[slot] = end
        is_old = lo > last and (f.by_unit or lo > far_head) and plan.head[plan.unit_at[lo]] == lo
        if is_old and end + plan.late[lo] > limit:
            return np.inf, restart, hi
        latency = max(latency, end)
        plan.new_taken[lo] = taken
        for at in range(lo, hi):
            unit = plan.unit_at[at]
            plan.new_ends[unit] = end
            plan.new_head[unit] = lo
            if end + plan.tail[unit, b] > limit:
                return np.inf, restart, hi
            is_moved = not f.by_unit and plan.head[unit] != lo
            if is_moved or plan.ends[unit] != end:
                for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
                    x = f.made[at_made]
                    for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                        far = max(far, plan.place[f.readers[at_reader]])
                if is_moved and by_target:
                    # Others may pay now for what it reads.
                    for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
                        x = f.reads[at_read]
                        for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                            far = max(far, plan.place[f.readers[at_reader]])
                if is_moved:
                    far_head = max(far_head, far)
        lo = hi
        if lo == n:
            return latency, restart, n
        if lo > far and plan.head[plan.unit_at[lo]] == lo:
            is_same = True
            for number in range(len(machine)):
                if machine[number] != plan.machine[lo, number]:
                    is_same = False
                    break
            if is_same:
                return max(latency, plan.behind[lo]), restart, lo


@compiled
def keep(f: Flat, plan: Line, restart: int, stop: int) -> None:
    """Make a trial what holds; :func:`hal.planning.slack.settle` is due then.

    Args:
        f: The problem.
        plan: The line; changed.
        restart: As :func:`timed` returned it.
        stop: As :func:`timed` returned it.
    """
    n = len(plan.place)
    for at in range(restart, stop):
        unit = plan.unit_at[at]
        plan.ends[unit] = plan.new_ends[unit]
        plan.head[unit] = plan.new_head[unit]
        if plan.new_head[unit] == at:
            fill(plan.machine[at], plan.new_machine[at])
            plan.taken[at] = plan.new_taken[at]
    for at in range(restart, n):
        latency = max(plan.before[at], plan.ends[plan.unit_at[at]])
        if at + 1 >= stop and plan.before[at + 1] == latency:
            break
        plan.before[at + 1] = latency
    for at in range(stop - 1, -1, -1):
        latency = max(plan.behind[at + 1], plan.ends[plan.unit_at[at]])
        if at < restart and plan.behind[at] == latency:
            break
        plan.behind[at] = latency
    if f.charge != CHARGE_TARGET:
        return
    t, began = f.time.shape[1], plan.stamp[len(f.producer) + 1]
    for at in range(restart, stop):
        unit = plan.unit_at[at]
        for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[at_read]
            for b in range(t):
                if restart <= plan.arrived_for[x, b] < stop:
                    plan.arrived_for[x, b] = n
    for at in range(restart, stop):
        unit = plan.unit_at[at]
        b = plan.target[unit]
        for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[at_read]
            maker = f.producer[x]
            if maker >= 0 and plan.head[maker] == plan.head[unit]:
                continue
            if plan.arrived_in[x, b] > began and plan.arrived_for[x, b] == n:
                plan.arrived_for[x, b], plan.arrived[x, b] = plan.head[unit], plan.new_arrived[x, b]


@compiled
def move(plan: Line, at: int, to: int) -> None:
    """Move the unit at one place to another; those between close up."""
    unit = plan.unit_at[at]
    step = 1 if to > at else -1
    while at != to:
        other = plan.unit_at[at + step]
        plan.unit_at[at] = other
        plan.place[other] = at
        at += step
    plan.unit_at[to] = unit
    plan.place[unit] = to


@compiled
def reach(f: Flat, plan: Line, unit: int) -> tuple[int, int]:
    """The first and the last place where a unit can stand, the others as they are."""
    low, high = 0, len(plan.place) - 1
    for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
        maker = f.producer[f.reads[at_read]]
        if maker >= 0:
            low = max(low, plan.place[maker] + 1)
    for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
        x = f.made[at_made]
        for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
            high = min(high, plan.place[f.readers[at_reader]] - 1)
    return low, high


@compiled
def span(f: Flat, plan: Line, unit: int, has_send: bool) -> tuple[int, int]:
    """The first and the last place where it matters where a unit stands and on which target.

    What it reads may have to be sent or not; what it makes comes to its readers in another time and order;
    and where tensors are charged for once for each target, others that read the same may have to pay.

    Args:
        f: The problem.
        plan: The line.
        unit: The unit.
        has_send: Whether sending takes any time.
    """
    first = last = int(plan.place[unit])
    for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
        x = f.made[at_made]
        for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
            last = max(last, plan.place[f.readers[at_reader]])
    if has_send or f.charge == CHARGE_TARGET:
        for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[at_read]
            if has_send and f.producer[x] >= 0:
                first = min(first, plan.place[f.producer[x]])
            if f.charge == CHARGE_TARGET:
                for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                    last = max(last, plan.place[f.readers[at_reader]])
    return first, last
