"""What the beginning of a plan can become, for the exhaustive search: memory so far, and a lower bound."""

from __future__ import annotations

import numpy as np

from hal.planning.check import highest
from hal.planning.compiled import compiled
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
)
from hal.planning.flat import CHARGE_TARGET, Flat
from hal.planning.problem import Floats
from hal.planning.violations import SLACK


@compiled
def peaks(f: Flat, k: Tiny, st: State, d: int) -> Floats:
    """Highest use of each pool as far as it is known: what follows can only raise it.

    Tensors begin no later and end no earlier when more partitions are added, and times of partitions that
    are there already do not change.
    """
    n, n_pools, n_tensors = f.time.shape[0], len(k.capacity), len(f.producer)
    most = n + n_tensors * n_pools
    begin, end = np.empty(most), np.empty(most)
    size, where = np.empty(most), np.empty(most, np.int64)
    count = 0
    target, partition = st.target[d], st.partition[d]
    for unit in range(n):
        b = target[unit]
        if b < 0 or st.end[d, unit] <= st.start[d, unit]:
            continue
        largest = k.workspace_bytes[unit, b]
        is_first = True
        for other in range(n):
            if partition[other] == partition[unit]:
                largest = max(largest, k.workspace_bytes[other, b])
                is_first = is_first and other >= unit
        if is_first and largest > 0:
            begin[count], end[count] = st.start[d, unit], st.end[d, unit]
            size[count], where[count] = largest, k.pool[b]
            count += 1
    low, high = np.empty(n_pools), np.empty(n_pools)
    for x in range(n_tensors):
        maker = f.producer[x]
        if k.tensor_bytes[x] == 0 or (maker >= 0 and target[maker] < 0):
            continue
        low[:], high[:] = np.inf, 0.0
        if maker >= 0:
            origin = k.pool[target[maker]]
            low[origin] = st.start[d, maker]
            high[origin] = max(st.end[d, maker], st.leaves[d, x])
            if f.is_output[x]:
                high[origin] = st.sums[d, SUM_LATENCY]
        for at in range(f.readers_at[x], f.readers_at[x + 1]):
            reader = f.readers[at]
            b = target[reader]
            if b < 0:
                if k.one_queue:
                    high[0] = max(high[0], st.sums[d, SUM_LATENCY])
                continue
            m = k.pool[b]
            low[m] = min(low[m], st.start[d, reader], st.comes[d, x, b])
            high[m] = max(high[m], st.end[d, reader])
            if maker < 0 or k.pool[target[maker]] == m:
                continue
            pays = True
            if f.charge == CHARGE_TARGET:
                for at_other in range(f.readers_at[x], f.readers_at[x + 1]):
                    other = f.readers[at_other]
                    if target[other] == b and partition[other] < partition[reader]:
                        pays = False
            a = target[maker]
            if pays and (not f.overlap or f.silicon[a] == f.silicon[b]):
                high[k.pool[a]] = max(high[k.pool[a]], st.end[d, reader])
        for m in range(n_pools):
            if high[m] > low[m]:
                begin[count], end[count], size[count], where[count] = low[m], high[m], k.tensor_bytes[x], m
                count += 1
    return highest(begin[:count], end[:count], size[:count], where[:count], st.weight[d])


@compiled
def lowest(f: Flat, k: Tiny, st: State, d: int) -> float:
    """No plan that begins like row d has a lower objective; infinite where none keeps the constraints.

    Latency: units left start when what feeds them is there, and take their least time; a silicon computes
    its own after it is free. Throughput and energy: what is there, and the least of what is left. Memory:
    the peaks so far, and the least weights of what is left.
    """
    n, n_targets, n_silicons = f.time.shape[0], f.time.shape[1], len(f.slots)
    error, work, energy, weight = st.sums[d, SUM_ERROR], 0.0, st.sums[d, SUM_ENERGY], 0.0
    head = st.end[d].copy()
    latency = st.sums[d, SUM_LATENCY]
    alone = np.zeros(n_silicons)
    for unit in range(n):
        if st.mask[d] >> unit & 1:
            continue
        least_time, least_energy, least_error, least_weight = np.inf, np.inf, np.inf, np.inf
        home = np.int32(-1)
        for b in range(n_targets):
            if not k.can[unit, b] or (st.must[d, unit] >= 0 and st.must[d, unit] != b):
                continue
            call = f.call[b] if f.by_unit else 0.0
            least_time = min(least_time, f.time[unit, b] + call)
            least_energy = min(least_energy, f.energy[unit, b] + f.power[b] * call)
            least_error = min(least_error, k.error[unit, b])
            least_weight = min(least_weight, float(k.weight_bytes[unit, b]))
            if home == -1:
                home = f.silicon[b]
            elif home != f.silicon[b]:
                home = np.int32(-2)
        if not np.isfinite(least_time):
            return np.inf
        ready = 0.0
        for maker in range(unit):
            if k.needs[unit] >> maker & 1:
                ready = max(ready, head[maker])
        head[unit] = ready + least_time
        latency = max(latency, head[unit])
        work += least_time
        energy += least_energy
        error += least_error
        weight += least_weight
        if home >= 0:
            alone[home] += least_time
    if error > k.max_error * (1 + SLACK):
        return np.inf
    for m in range(len(k.capacity)):
        if st.weight[d, m] > k.capacity[m] * (1 + SLACK):
            return np.inf
    found = 0.0
    if k.objective == LATENCY:
        found = latency
    elif k.objective == THROUGHPUT:
        found = st.load[d].max() if len(st.load[d]) else 0.0
    elif k.objective == ENERGY:
        found = energy
    if k.objective in (LATENCY, THROUGHPUT):
        # All that is left is done by the silicons together; what only one can do, by that one.
        total, room, endless = work, 0, False
        for s in range(n_silicons):
            if f.slots[s] == 0:
                endless = True
                continue
            if k.objective == THROUGHPUT:
                before = st.load[d, s] * f.slots[s]
            else:
                before = st.slot_free[d, s, : min(f.slots[s], st.slot_free.shape[2])].sum()
            if f.slots[s] <= st.slot_free.shape[2]:
                found = max(found, (before + alone[s]) / f.slots[s])
                total += before
                room += f.slots[s]
            else:
                endless = True
        if not endless:
            found = max(found, total / room)
    if k.is_tight:
        now = peaks(f, k, st, d)
        for m in range(len(now)):
            if now[m] > k.capacity[m] * (1 + SLACK):
                return np.inf
        if k.objective == MEMORY:
            over = 0.0
            for m in range(len(now)):
                over += max(now[m] - k.free[m], 0.0)
            found = max(over, now.sum() + weight - k.free.sum())
    return found
