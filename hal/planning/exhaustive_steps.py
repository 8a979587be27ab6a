"""One step of the exhaustive search: add a partition to the beginning of a plan.

The rules are those of :mod:`hal.planning.evaluate`, written for plans whose end is still open.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.flat import CHARGE_EDGE, CHARGE_TARGET, Flat
from hal.planning.problem import Floats, Ints

LATENCY, THROUGHPUT, ENERGY, MEMORY = 0, 1, 2, 3
#: Columns of :attr:`State.sums`.
SUM_LATENCY, SUM_ENERGY, SUM_ERROR = 0, 1, 2


class Tiny(NamedTuple):
    """What the search must know beside :class:`~hal.planning.flat.Flat`; units are in topological order.

    Attributes:
        can: bool[n, t]: targets of each unit, see :func:`hal.planning.domains.domains`.
        needs: int64[n]: bit set of the units that feed a unit.
        group: int64[n]: as :attr:`Problem.same_device`.
        pool: int64[t].
        tensor_bytes: int64[v].
        weight_bytes: int64[n, t].
        workspace_bytes: int64[n, t].
        error: float64[n, t].
        capacity: float64[m].
        free: float64[m]: bytes of each pool that the objective ``memory`` does not count.
        part_limit: int64[t]: as :attr:`Problem.partitions_per_target`.
        max_parts: As :attr:`Problem.max_partitions`.
        max_error: As there.
        objective: One of the constants of this module.
        is_tight: Whether memory beside weights decides anything, so that peaks must be known.
        in_order: Whether the order of partitions decides nothing, so that one order will do.
        has_ports: Whether handoffs wait for one another.
        one_queue: Whether there is one pool, and one partition at a time: what is read later lives until now.
        keeps_times: Whether what times decide can be compared between beginnings; else all are kept.
    """

    can: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
    needs: Ints
    group: Ints
    pool: Ints
    tensor_bytes: Ints
    weight_bytes: Ints
    workspace_bytes: Ints
    error: Floats
    capacity: Floats
    free: Floats
    part_limit: Ints
    max_parts: int
    max_error: float
    objective: int
    is_tight: bool
    in_order: bool
    has_ports: bool
    one_queue: bool
    keeps_times: bool


class State(NamedTuple):
    """The beginning of a plan, row d after d partitions.

    Attributes:
        target: int64[rows, n]; -1 for units not placed yet. So also below.
        partition: int64[rows, n].
        must: int64[rows, n]: target that a unit has to have; -1 for any.
        start: float64[rows, n]: of the unit's partition.
        end: float64[rows, n]: of the unit's partition.
        slot_free: float64[rows, s, slots].
        send_free: float64[rows, s].
        receive_free: float64[rows, s].
        link_free: float64[rows, links].
        load: float64[rows, 3 s + links]: of silicons, send ports, receive ports, links.
        arrived: float64[rows, v, t]; -1 where a tensor did not come yet.
        comes: float64[rows, v, t].
        leaves: float64[rows, v].
        weight: float64[rows, m].
        used: int64[rows, t]: partitions of each target.
        sums: float64[rows, 3].
        sent: int64[rows, v]: target that sends a tensor because another one is to read it; -1 for none.
        mask: int64[rows]: bit set of placed units.
        last: int64[rows]: bit set of the last partition.
    """

    target: Ints
    partition: Ints
    must: Ints
    start: Floats
    end: Floats
    slot_free: Floats
    send_free: Floats
    receive_free: Floats
    link_free: Floats
    load: Floats
    arrived: Floats
    comes: Floats
    leaves: Floats
    weight: Floats
    used: Ints
    sums: Floats
    sent: Ints
    mask: Ints
    last: Ints


@compiled
def copied(st: State, d: int) -> None:
    """Copy row d to row d + 1."""
    st.target[d + 1] = st.target[d]
    st.partition[d + 1] = st.partition[d]
    st.must[d + 1] = st.must[d]
    st.start[d + 1] = st.start[d]
    st.end[d + 1] = st.end[d]
    st.slot_free[d + 1] = st.slot_free[d]
    st.send_free[d + 1] = st.send_free[d]
    st.receive_free[d + 1] = st.receive_free[d]
    st.link_free[d + 1] = st.link_free[d]
    st.load[d + 1] = st.load[d]
    st.arrived[d + 1] = st.arrived[d]
    st.comes[d + 1] = st.comes[d]
    st.leaves[d + 1] = st.leaves[d]
    st.weight[d + 1] = st.weight[d]
    st.used[d + 1] = st.used[d]
    st.sent[d + 1] = st.sent[d]
    st.sums[d + 1] = st.sums[d]


@compiled
def open_tensors(f: Flat, st: State, d: int, chosen: int, b: int, found: Ints) -> int:
    """Tensors of the units in ``chosen`` of which it is not known yet whether another target reads them.

    Only those that cost something to send. Fills in ``found`` and returns their number.
    """
    count = 0
    for unit in range(f.time.shape[0]):
        if not chosen >> unit & 1:
            continue
        for at in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[at]
            if f.is_output[x] or f.send[x, b] == 0:
                continue
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                reader = f.readers[at_reader]
                if not (st.mask[d] | chosen) >> reader & 1:
                    found[count] = x
                    count += 1
                    break
    return count


@compiled
def added(
    f: Flat, k: Tiny, st: State, d: int, chosen: int, b: int, sent: int, open_: Ints, n_open: int
) -> bool:
    """Fill in row d + 1: row d and one more partition, the units ``chosen`` on target b.

    Args:
        f: The problem.
        k: More of it.
        st: The state.
        d: Row.
        chosen: Bit set of units.
        b: Target.
        sent: Bit set of the tensors ``open_`` that another target is to read; the others it must not.
        open_: See :func:`open_tensors`.
        n_open: How many they are.

    Returns:
        False where a constraint is broken for certain; the row is of no use then.
    """
    n, n_silicons = f.time.shape[0], len(f.slots)
    s = f.silicon[b]
    copied(st, d)
    d += 1
    p = np.int64(st.used[d].sum())
    st.used[d, b] += 1
    if k.part_limit[b] > 0 and st.used[d, b] > k.part_limit[b]:
        return False
    st.mask[d] = st.mask[d - 1] | chosen
    st.last[d] = chosen
    if k.max_parts > 0 and p + 1 + (st.mask[d] != (1 << n) - 1) > k.max_parts:
        return False
    taken, calculating, handed, ready = f.call[b], 0.0, 0.0, 0.0
    for unit in range(n):
        if chosen >> unit & 1:
            st.target[d, unit], st.partition[d, unit] = b, p
            taken += f.time[unit, b]
            calculating += f.time[unit, b]
            st.sums[d, SUM_ENERGY] += f.energy[unit, b]
            st.sums[d, SUM_ERROR] += k.error[unit, b]
            st.weight[d, k.pool[b]] += k.weight_bytes[unit, b]
            if k.group[unit] >= 0:
                for other in range(n):
                    if k.group[other] == k.group[unit] and not st.mask[d] >> other & 1:
                        if st.must[d, other] >= 0 and st.must[d, other] != b:
                            return False
                        st.must[d, other] = b
    for at in range(n_open):
        x = open_[at]
        if sent >> at & 1:
            st.sent[d, x] = b
        else:
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                reader = f.readers[at_reader]
                if not st.mask[d] >> reader & 1:
                    if st.must[d, reader] >= 0 and st.must[d, reader] != b:
                        return False
                    st.must[d, reader] = b
    coming = _coming(f, st, d, chosen, p)
    n_tensors = len(f.producer)
    by_target = f.charge == CHARGE_TARGET
    for key in coming:
        x = key % n_tensors
        q = key // n_tensors - 1
        if q < 0:
            if by_target:
                if st.arrived[d, x, b] >= 0:
                    continue
                st.arrived[d, x, b] = 0.0
            taken += f.receive[x, b]
            continue
        maker = f.producer[x]
        a = st.target[d, maker]
        done = st.end[d, maker]
        long = f.transfer[x, a, b]
        if a == b:
            ready = max(ready, done)
            if by_target:
                if st.arrived[d, x, b] >= 0:
                    continue
                st.arrived[d, x, b] = 0.0
            taken += long
            continue
        if by_target and st.arrived[d, x, b] >= 0:
            ready = max(ready, st.arrived[d, x, b])
            continue
        taken += f.receive[x, b]
        c = f.silicon[a]
        if c == s or not f.overlap:
            taken += long
            ready = max(ready, done)
            if by_target:
                st.arrived[d, x, b] = done
            continue
        begin = done
        if long > 0:
            link = f.link[a, b]
            if f.send_port:
                begin = max(begin, st.send_free[d, c])
            if f.receive_port:
                begin = max(begin, st.receive_free[d, s])
            if link >= 0:
                begin = max(begin, st.link_free[d, link])
            if f.send_port:
                st.send_free[d, c] = begin + long
                st.load[d, n_silicons + c] += long
            if f.receive_port:
                st.receive_free[d, s] = begin + long
                st.load[d, 2 * n_silicons + s] += long
            if link >= 0:
                st.link_free[d, link] = begin + long
                st.load[d, 3 * n_silicons + link] += long
            handed += long
        ready = max(ready, begin + long)
        if k.is_tight:
            st.comes[d, x, b] = min(st.comes[d, x, b], begin)
            st.leaves[d, x] = max(st.leaves[d, x], begin + long)
        if by_target:
            st.arrived[d, x, b] = begin + long
    taken += _sending(f, st, d, chosen, b, sent, open_, n_open)
    if f.slots[s] > 0:
        # Kept in order, so that the first is the one that is free first.
        ready = max(ready, st.slot_free[d, s, 0])
        slots = st.slot_free[d, s]
        last = min(f.slots[s], len(slots))
        at = 0
        while at + 1 < last and slots[at + 1] < ready + taken:
            slots[at] = slots[at + 1]
            at += 1
        slots[at] = ready + taken
        st.load[d, s] += taken / f.slots[s]
    for unit in range(n):
        if chosen >> unit & 1:
            st.start[d, unit], st.end[d, unit] = ready, ready + taken
    st.sums[d, SUM_LATENCY] = max(st.sums[d, SUM_LATENCY], ready + taken)
    st.sums[d, SUM_ENERGY] += f.power[b] * (taken - calculating + handed)
    return True


@compiled
def _coming(f: Flat, st: State, d: int, chosen: int, p: np.int64) -> Ints:
    """Keys of the tensors a partition reads from others: in the order of the making partition and tensor."""
    n_tensors = len(f.producer)
    found = np.empty(len(f.reads), np.int64)
    count = 0
    for unit in range(f.time.shape[0]):
        if not chosen >> unit & 1:
            continue
        for at in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[at]
            maker = f.producer[x]
            q = -1 if maker < 0 else st.partition[d, maker]
            if q != p:
                found[count] = (q + 1) * n_tensors + x
                count += 1
    keys = np.sort(found[:count])
    if f.charge == CHARGE_EDGE or count == 0:
        return keys
    once = 1
    for at in range(1, count):
        if keys[at] != keys[once - 1]:
            keys[once] = keys[at]
            once += 1
    return keys[:once]


@compiled
def _sending(f: Flat, st: State, d: int, chosen: int, b: int, sent: int, open_: Ints, n_open: int) -> float:
    """Time for what a partition sends."""
    taken = 0.0
    for unit in range(f.time.shape[0]):
        if not chosen >> unit & 1:
            continue
        for at in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[at]
            is_wanted = f.is_output[x]
            for at_open in range(n_open):
                if open_[at_open] == x and sent >> at_open & 1:
                    is_wanted = True
            if is_wanted:
                taken += f.send[x, b]
    return taken


@compiled
def is_true(f: Flat, st: State, d: int) -> bool:
    """Whether another target reads each tensor that was sent for one; row d is a whole plan.

    What is sent in vain takes longer than the plan does, which can make it hold less memory.
    """
    for x in range(len(f.producer)):
        a = st.sent[d, x]
        if a < 0:
            continue
        is_read = False
        for at in range(f.readers_at[x], f.readers_at[x + 1]):
            is_read = is_read or st.target[d, f.readers[at]] != a
        if not is_read:
            return False
    return True
