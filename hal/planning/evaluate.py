"""What an assignment is worth, in microseconds: the recursion that solvers call in their inner loops.

It computes what :mod:`hal.planning.simulate` finds by carrying the plan out; tests hold the two together.
Constraints are not looked at here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.flat import CHARGE_EDGE, CHARGE_TARGET, Flat, flat
from hal.planning.problem import Assignment, Floats, Ints, Problem, Small


class Values(NamedTuple):
    """The objectives of an assignment; memory is the simulator's.

    Attributes:
        latency: Infinite where a unit cannot run on its target or partitions are not in topological order.
        throughput: Largest load.
        energy: Sum.
    """

    latency: float
    throughput: float
    energy: float


def evaluate(problem: Problem, assignment: Assignment) -> Values:
    """Latency, throughput and energy of an assignment, by the rules of :mod:`hal.planning.problem`."""
    n_partitions = assignment.n_partitions
    starts, ends = np.empty(n_partitions), np.empty(n_partitions)
    return Values(*walk(flat(problem), assignment.target, assignment.partition, starts, ends, *no_handoffs()))


def no_handoffs() -> tuple[Floats, Floats]:
    """For :func:`walk`, where nobody asks when tensors arrive and leave."""
    return np.empty((0, 0)), np.empty(0)


@compiled
def members(partition: Small, n_partitions: int) -> tuple[Small, Small]:
    """Units by partition: ``units[at[p]:at[p + 1]]``, in the order of their numbers."""
    at = np.zeros(n_partitions + 1, np.int32)
    for unit in range(len(partition)):
        at[partition[unit] + 1] += 1
    for p in range(n_partitions):
        at[p + 1] += at[p]
    fill = at[:-1].copy()
    units = np.empty(len(partition), np.int32)
    for unit in range(len(partition)):
        units[fill[partition[unit]]] = unit
        fill[partition[unit]] += 1
    return at, units


@compiled
def sort(keys: Ints) -> None:
    """Sort in place; most are few and nearly sorted, so insertion is quick."""
    if len(keys) > 64:
        keys.sort()
        return
    for at in range(1, len(keys)):
        key, slot = keys[at], at
        while slot and keys[slot - 1] > key:
            keys[slot] = keys[slot - 1]
            slot -= 1
        keys[slot] = key


@compiled
def walk(
    f: Flat,
    target: Small,
    partition: Small,
    starts: Floats,
    ends: Floats,
    comes: Floats,
    leaves: Floats,
) -> tuple[float, float, float]:
    """Latency, throughput and energy; fills in when each partition starts and ends.

    Args:
        f: The problem.
        target: Of each unit.
        partition: Of each unit.
        starts: float64[partitions], filled in.
        ends: float64[partitions], filled in.
        comes: float64[v, t], infinite at first, lowered to the first begin of a handoff that overlaps;
            empty where nobody asks.
        leaves: float64[v], 0 at first, raised to the last end of such a handoff; empty likewise.
    """
    bad = (np.inf, np.inf, np.inf)
    n_silicons, n_partitions = len(f.slots), len(ends)
    n_targets, n_tensors = f.time.shape[1], len(f.producer)
    at, units = members(partition, n_partitions)
    n_links = f.link.max() + 1
    link_free, link_load = np.zeros(n_links), np.zeros(n_links)
    send_free, send_load = np.zeros(n_silicons), np.zeros(n_silicons)
    receive_free, receive_load = np.zeros(n_silicons), np.zeros(n_silicons)
    silicon_load = np.zeros(n_silicons)
    most_slots = max(1, min(f.slots.max(), n_partitions))
    slot_free = np.zeros((n_silicons, most_slots))
    stamp = np.full(n_tensors, -1, np.int32)
    by_target = f.charge == CHARGE_TARGET
    arrived = np.full((n_tensors if by_target else 0, n_targets), -1.0)
    coming = np.empty(16, np.int64)
    latency = energy = 0.0
    for p in range(n_partitions):
        b = target[units[at[p]]]
        s = f.silicon[b]
        ready, taken, handed = 0.0, f.call[b], 0.0
        n_coming = 0
        for place in range(at[p], at[p + 1]):
            unit = units[place]
            if target[unit] != b or not np.isfinite(f.time[unit, b]):
                return bad
            taken += f.time[unit, b]
            energy += f.energy[unit, b]
            for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
                x = f.reads[at_read]
                maker = f.producer[x]
                q = -1 if maker < 0 else partition[maker]
                if q == p:
                    continue
                if q > p:
                    return bad
                if f.charge != CHARGE_EDGE:
                    if stamp[x] == p:
                        continue
                    stamp[x] = p
                if n_coming == len(coming):
                    longer = np.empty(2 * n_coming, np.int64)
                    longer[:n_coming] = coming
                    coming = longer
                coming[n_coming] = np.int64(q + 1) * n_tensors + x
                n_coming += 1
            for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
                x = f.made[at_made]
                is_wanted = f.is_output[x]
                for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                    if target[f.readers[at_reader]] != b:
                        is_wanted = True
                        break
                if is_wanted:
                    taken += f.send[x, b]
        # In the order of the making partition, then of the tensor.
        sort(coming[:n_coming])
        for number in range(n_coming):
            x = coming[number] % n_tensors
            q = coming[number] // n_tensors - 1
            if q < 0:
                if by_target:
                    if arrived[x, b] >= 0:
                        continue
                    arrived[x, b] = 0.0
                taken += f.receive[x, b]
                continue
            a = target[f.producer[x]]
            long = f.transfer[x, a, b]
            if a == b:
                ready = max(ready, ends[q])
                if by_target:
                    if arrived[x, b] >= 0:
                        continue
                    arrived[x, b] = 0.0
                taken += long
                continue
            if by_target and arrived[x, b] >= 0:
                ready = max(ready, arrived[x, b])
                continue
            taken += f.receive[x, b]
            c = f.silicon[a]
            if c == s or not f.overlap:
                taken += long
                ready = max(ready, ends[q])
                if by_target:
                    arrived[x, b] = ends[q]
                continue
            begin = ends[q]
            if long > 0:
                link = f.link[a, b]
                if f.send_port:
                    begin = max(begin, send_free[c])
                if f.receive_port:
                    begin = max(begin, receive_free[s])
                if link >= 0:
                    begin = max(begin, link_free[link])
                if f.send_port:
                    send_free[c] = begin + long
                    send_load[c] += long
                if f.receive_port:
                    receive_free[s] = begin + long
                    receive_load[s] += long
                if link >= 0:
                    link_free[link] = begin + long
                    link_load[link] += long
                handed += long
            ready = max(ready, begin + long)
            if len(leaves):
                comes[x, b] = min(comes[x, b], begin)
                leaves[x] = max(leaves[x], begin + long)
            if by_target:
                arrived[x, b] = begin + long
        if f.slots[s] > 0:
            slot = 0
            for other in range(1, min(f.slots[s], n_partitions)):
                if slot_free[s, other] < slot_free[s, slot]:
                    slot = other
            ready = max(ready, slot_free[s, slot])
            slot_free[s, slot] = ready + taken
            silicon_load[s] += taken / f.slots[s]
        starts[p], ends[p] = ready, ready + taken
        latency = max(latency, ends[p])
        calculating = 0.0
        for place in range(at[p], at[p + 1]):
            calculating += f.time[units[place], b]
        energy += f.power[b] * (taken - calculating + handed)
    throughput = 0.0
    for s in range(n_silicons):
        throughput = max(throughput, silicon_load[s], send_load[s], receive_load[s])
    for link in range(n_links):
        throughput = max(throughput, link_load[link])
    return latency, throughput, energy
