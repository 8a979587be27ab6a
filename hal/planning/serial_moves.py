"""The compiled part of :mod:`hal.planning.serial`: one unit after the other into open partitions.

A state is a row of int32::

    0                     number of open partitions
    1 .. OPEN             their targets
    OPEN + 1 .. 2 * OPEN  which partitions each of them comes before, as bits
    then two per lane     partition that made the tensor of the lane (OUTSIDE_MAKER for none, -1 for no
                          tensor); who was charged for it, as bits, and SENT
    then one per group    target of the group of units that must share one, plus 1; 0 where none is placed
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.flat import CHARGE_EDGE, CHARGE_PARTITION, Flat
from hal.planning.orders import Lanes, changes
from hal.planning.problem import Floats, Small

#: Partitions that a state keeps open; states that would need more are left out, and nothing is proven then.
OPEN = 8
_WIDE = OPEN + 1
_REACH = 1 + _WIDE
_LANES = 1 + 2 * _WIDE
OUTSIDE_MAKER = 15
SENT = 1 << 28
#: States that each state is compared with.
_COMPARED = 16
#: Targets that fit the bits of a lane.
MOST_TARGETS = 28


class Costs(NamedTuple):
    """What the pieces of a plan add to the objective.

    Attributes:
        unit: float64[n, t]; infinite where a target cannot compute a unit.
        call: float64[t].
        rate: float64[t]: objective for each unit of time that a target calls, sends or receives.
    """

    unit: Floats
    call: Floats
    rate: Floats


@compiled
def advance(
    f: Flat, costs: Costs, lay: Lanes, at: int, b: int, q: int, row: Small, names: Small
) -> tuple[float, bool]:
    """Place the unit at a position of the order; the row becomes that of the new state.

    Args:
        f: The problem.
        costs: Of its pieces.
        lay: Its order.
        at: Position.
        b: Target.
        q: Open partition that the unit joins; the number of open ones for a new one.
        row: Changed.
        names: int32[OPEN + 1]: filled in, the new number of each partition; -1 where it is closed.

    Returns:
        What that costs, infinite where it cannot be; and whether a partition was closed.
    """
    unit = lay.order[at]
    n_open = row[0]
    cost = costs.unit[unit, b]
    if q < n_open:
        for number in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[number]
            if f.producer[x] >= 0:
                p = row[_LANES + 2 * lay.lane[x]]
                if p != q and row[_REACH + q] >> p & 1:
                    return np.inf, False
    else:
        row[1 + q], row[_REACH + q] = b, 0
        n_open += 1
        cost += costs.call[b]
    before = 0
    for number in range(f.reads_at[unit], f.reads_at[unit + 1]):
        x = f.reads[number]
        lane = _LANES + 2 * lay.lane[x]
        maker = f.producer[x]
        if maker < 0:
            if lay.lane[x] < 0:
                cost += costs.rate[b] * f.receive[x, b]
                continue
            if row[lane] < 0:
                row[lane], row[lane + 1] = OUTSIDE_MAKER, 0
        p = row[lane]
        if p == q:
            if lay.last[x] == at:
                row[lane], row[lane + 1] = -1, 0
            continue
        if maker >= 0:
            before |= 1 << p
        bit = 0
        if f.charge != CHARGE_EDGE:
            bit = 1 << (q if f.charge == CHARGE_PARTITION else b)
        if not row[lane + 1] & bit:
            row[lane + 1] |= bit
            if maker < 0:
                cost += costs.rate[b] * f.receive[x, b]
            else:
                a = row[1 + p]
                cost += costs.rate[b] * f.transfer[x, a, b]
                if a != b:
                    cost += costs.rate[b] * f.receive[x, b]
        if maker >= 0 and row[1 + p] != b and not row[lane + 1] & SENT:
            row[lane + 1] |= SENT
            cost += costs.rate[row[1 + p]] * f.send[x, row[1 + p]]
        if lay.last[x] == at:
            row[lane], row[lane + 1] = -1, 0
    if before:
        gained = 1 << q | row[_REACH + q]
        for j in range(n_open):
            if before >> j & 1 or row[_REACH + j] & before:
                row[_REACH + j] |= gained
    for number in range(f.made_at[unit], f.made_at[unit + 1]):
        x = f.made[number]
        if f.is_output[x]:
            cost += costs.rate[b] * f.send[x, b]
        if lay.lane[x] >= 0:
            row[_LANES + 2 * lay.lane[x]] = q
            row[_LANES + 2 * lay.lane[x] + 1] = SENT if f.is_output[x] else 0
    if lay.group[unit] >= 0:
        row[_LANES + 2 * lay.n_lanes + lay.group[unit]] = 0 if lay.group_last[unit] == at else b + 1
    row[0] = n_open
    return cost, _tidy(f, lay, at, row, names)


@compiled
def _tidy(f: Flat, lay: Lanes, at: int, row: Small, names: Small) -> bool:
    """Close partitions that no unit can join, and number the others by the lanes; whether any was closed.

    A unit cannot join a partition that comes before one that made a tensor the unit depends on.
    """
    n_open = row[0]
    names[:] = -1
    held = count = 0
    for lane in range(_LANES, _LANES + 2 * lay.n_lanes, 2):
        p = row[lane]
        if 0 <= p < OUTSIDE_MAKER and names[p] < 0:
            names[p] = count
            count += 1
            held |= 1 << p
    for p in range(n_open):
        if names[p] < 0 and _can_be_joined(lay, at, row, p, held):
            names[p] = count
            count += 1
    old_target, old_reach = row[1 : 1 + _WIDE].copy(), row[_REACH : _REACH + _WIDE].copy()
    row[1:_LANES] = 0
    for p in range(n_open):
        if names[p] >= 0:
            row[1 + names[p]] = old_target[p]
            reach = 0
            for other in range(n_open):
                if old_reach[p] >> other & 1 and names[other] >= 0:
                    reach |= 1 << names[other]
            row[_REACH + names[p]] = reach
    for lane in range(_LANES, _LANES + 2 * lay.n_lanes, 2):
        p = row[lane]
        if p < 0:
            continue
        if p < OUTSIDE_MAKER:
            row[lane] = names[p]
        if f.charge == CHARGE_PARTITION and row[lane + 1] & (SENT - 1):
            bits = row[lane + 1] & SENT
            for other in range(n_open):
                if row[lane + 1] >> other & 1 and names[other] >= 0:
                    bits |= 1 << names[other]
            row[lane + 1] = bits
    row[0] = count
    return bool(count < n_open)


@compiled
def _can_be_joined(lay: Lanes, at: int, row: Small, p: int, held: int) -> bool:
    """Whether a unit may come that depends only on tensors that partition p does not come before."""
    reach = row[_REACH + p]
    if not held & ~reach:
        return False
    if len(lay.next) == 0:
        return True
    behind = np.int64(0)
    for lane in range(lay.n_lanes):
        maker = row[_LANES + 2 * lane]
        if 0 <= maker < OUTSIDE_MAKER and reach >> maker & 1:
            behind |= np.int64(1) << lane
    return bool((lay.next[lay.next_at[at] : lay.next_at[at + 1]] & behind == 0).any())


@compiled
def _is_beaten(
    f: Flat, costs: Costs, lay: Lanes, dear: Floats, better: Small, row: Small, lead: float, mate: Small
) -> bool:
    """Whether a state can be left out, because another one goes on as well in all that it can do.

    From the better state one does what one would do from the other. Partitions of the two are matched; units
    that would join one without a match start a new one, at the price of a call, and tensors whose maker or
    charges differ are handed over anew. The new plan must be acyclic: no match may come before more than it
    did, nor before a tensor whose maker has no match.

    Args:
        f: The problem.
        costs: Of its pieces.
        lay: Its order.
        dear: float64[lanes]: what it costs at most to hand over the tensor of each lane to all readers left.
        better: A state.
        row: Another, at the same position.
        lead: How much cheaper the better state is.
        mate: int32[OPEN + 1]: scratch.
    """
    n_open, end = row[0], _LANES + 2 * lay.n_lanes
    for at in range(end, len(row)):
        if row[at] != better[at]:
            return False
    mate[:] = -1
    taken = lost = banned = 0
    for lane in range(_LANES, end, 2):
        p, m = row[lane], better[lane]
        if p < 0 or p == OUTSIDE_MAKER or mate[p] == m:
            continue
        if mate[p] < 0 and not taken >> m & 1 and row[1 + p] == better[1 + m]:
            mate[p] = m
            taken |= 1 << m
        else:
            lost |= 1 << p
            banned |= 1 << m
    for p in range(n_open):
        if mate[p] < 0 and not lost >> p & 1:
            for m in range(better[0]):
                if not (taken | banned) >> m & 1 and better[1 + m] == row[1 + p]:
                    mate[p] = m
                    taken |= 1 << m
                    break
            else:
                lost |= 1 << p
        elif mate[p] >= 0 and banned >> mate[p] & 1:
            lost |= 1 << p
    has_changed = True
    while has_changed:
        has_changed = False
        # Makers of tensors that nobody is matched with: what comes before them comes before the readers.
        past = 0
        for lane in range(_LANES, end, 2):
            if 0 <= row[lane] < OUTSIDE_MAKER and lost >> row[lane] & 1:
                past |= 1 << better[lane]
        for p in range(n_open):
            if lost >> p & 1:
                continue
            reach = better[_REACH + mate[p]]
            if reach & past:
                lost |= 1 << p
                has_changed = True
                continue
            for r in range(n_open):
                if not lost >> r & 1 and reach >> mate[r] & 1 and not row[_REACH + p] >> r & 1:
                    lost |= 1 << p
                    has_changed = True
                    break
    for p in range(n_open):
        if lost >> p & 1:
            lead -= costs.call[row[1 + p]]
    if lead < 0:
        return False
    for lane in range(_LANES, end, 2):
        p = row[lane]
        if p < 0:
            continue
        bits = row[lane + 1]
        if f.charge == CHARGE_PARTITION and bits & (SENT - 1):
            mapped = bits & SENT
            for other in range(n_open):
                if bits >> other & 1:
                    mapped |= 1 << (_WIDE if lost >> other & 1 else mate[other])
            bits = mapped
        if (p < OUTSIDE_MAKER and lost >> p & 1) or bits & ~better[lane + 1]:
            lead -= dear[(lane - _LANES) // 2]
            if lead < 0:
                return False
    return True


@compiled
def width(lay: Lanes) -> int:
    """Numbers in a row."""
    return _LANES + 2 * lay.n_lanes + lay.n_groups


@compiled
def sweep(
    f: Flat, costs: Costs, lay: Lanes, dear: Floats, rest: Floats, most: int, last_source: int, upper: float
) -> tuple[float, float, Small, Small, bool]:
    """The cheapest way to place all units, over at most so many states for each position.

    Args:
        f: The problem.
        costs: Of its pieces.
        lay: Its order.
        dear: float64[v]: what it costs at most to hand a tensor to all its readers.
        rest: float64[n + 1]: what the units from each position on cost at least.
        most: States.
        last_source: Last position of a unit that reads nothing that is made.
        upper: Ways that cost more are left out.

    Returns:
        The cost of the best way, infinite where none was found; a lower bound of all ways; the target and
        the choice (open partition joined) at each position; whether more states would change nothing.
    """
    n, n_targets = costs.unit.shape
    size = width(lay)
    cap = 8 * most
    rows, made = np.zeros((cap, size), np.int32), np.zeros((cap, size), np.int32)
    cost, new_cost = np.zeros(cap), np.zeros(cap)
    parent, choice = np.zeros(cap, np.int32), np.zeros(cap, np.int32)
    table_size = 1
    while table_size < 2 * cap:
        table_size *= 2
    table = np.full(table_size, -1, np.int32)
    used = np.empty(cap, np.int64)
    offsets = np.zeros(n + 2, np.int64)
    parents, choices = np.empty(64 * n + most, np.int32), np.empty(64 * n + most, np.int32)
    for lane in range(_LANES, _LANES + 2 * lay.n_lanes, 2):
        rows[0, lane] = -1
    names = np.empty(_WIDE, np.int32)
    trial = np.empty(size, np.int32)
    lower, open_lower, lost = np.inf, np.inf, 0.0
    dearest, calls = costs.call.max(), changes(f, lay, OPEN)
    is_all, has_closed, is_late = True, False, False
    lane_dear, mate = np.zeros(lay.n_lanes), np.empty(_WIDE, np.int32)
    sequence = np.zeros(1, np.int64)
    for at in range(n):
        unit = lay.order[at]
        n_new = n_used = 0
        if has_closed and at <= last_source and not is_late:
            # It might join a partition that is closed; what was found up to here is still true.
            lower = min(lower, cost[sequence[0]] + rest[at])
            is_late, lost = True, np.inf
        # The states that go on were stored in this order by the position before.
        for number in range(len(sequence)):
            state = sequence[number]
            lane_of_group = lay.group[unit]
            forced = rows[state, _LANES + 2 * lay.n_lanes + lane_of_group] - 1 if lane_of_group >= 0 else -1
            for b in range(n_targets):
                if costs.unit[unit, b] == np.inf or (forced >= 0 and b != forced):
                    continue
                n_open = rows[state, 0]
                for q in range(n_open + 1):
                    if q < n_open and rows[state, 1 + q] != b:
                        continue
                    trial[:] = rows[state]
                    step, closed = advance(f, costs, lay, at, b, q, trial, names)
                    if step == np.inf:
                        continue
                    value = cost[state] + step
                    if value + rest[at + 1] > upper:
                        continue
                    if trial[0] > OPEN:
                        lower = min(lower, value + rest[at + 1])
                        open_lower = min(open_lower, value + rest[at + 1])
                        continue
                    has_closed |= closed
                    key = np.uint64(1469598103934665603)
                    for byte in range(size):
                        key = (key ^ np.uint64(trial[byte] & 0xFFFFFFFF)) * np.uint64(1099511628211)
                    key ^= key >> np.uint64(29)
                    slot = np.int64(key & np.uint64(table_size - 1))
                    while True:
                        known = table[slot]
                        if known < 0:
                            break
                        same = True
                        for byte in range(size):
                            if made[known, byte] != trial[byte]:
                                same = False
                                break
                        if same:
                            break
                        slot = (slot + 1) & (table_size - 1)
                    if known < 0:
                        if n_new == cap:
                            lower = min(lower, value + rest[at + 1])
                            open_lower = min(open_lower, value + rest[at + 1])
                            is_all = False
                            continue
                        known = n_new
                        n_new += 1
                        table[slot] = known
                        used[n_used] = slot
                        n_used += 1
                        made[known] = trial
                    elif new_cost[known] <= value:
                        continue
                    new_cost[known], parent[known], choice[known] = value, number, b * 16 + q
        for number in range(n_used):
            table[used[number]] = -1
        if n_new == 0:
            return np.inf, min(lower, upper), np.zeros(0, np.int32), np.zeros(0, np.int32), is_all
        sequence = np.argsort(new_cost[:n_new])
        kept = 0
        for number in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[number]
            if lay.lane[x] >= 0:
                lane_dear[lay.lane[x]] = dear[x] if lay.last[x] > at else 0.0
        for number in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[number]
            if lay.lane[x] >= 0:
                lane_dear[lay.lane[x]] = dear[x]
        for number in range(n_new):
            state = sequence[number]
            is_beaten = False
            for other in range(min(kept, _COMPARED)):
                lead = new_cost[state] - new_cost[sequence[other]]
                if _is_beaten(f, costs, lay, lane_dear, made[sequence[other]], made[state], lead, mate):
                    is_beaten = True
                    break
            if is_beaten:
                continue
            if kept == most:
                lower = min(lower, new_cost[state] + rest[at + 1])
                open_lower = min(open_lower, new_cost[state] + rest[at + 1])
                is_all = False
                break
            sequence[kept] = state
            kept += 1
        sequence = sequence[:kept].copy()
        if open_lower < np.inf and calls[at] >= 0:
            # From here on no state is worse than the best by more than it takes to change over.
            ahead = new_cost[sequence[0]] + calls[at] * dearest + lane_dear.sum()
            lost += max(0.0, ahead - (open_lower - rest[at + 1]))
            open_lower = np.inf
        start = offsets[at]
        if start + kept > len(parents):
            room = 2 * len(parents) + kept
            longer, longer_choices = np.empty(room, np.int32), np.empty(room, np.int32)
            longer[:start], longer_choices[:start] = parents[:start], choices[:start]
            parents, choices = longer, longer_choices
        for number in range(kept):
            parents[start + number] = parent[sequence[number]]
            choices[start + number] = choice[sequence[number]]
        offsets[at + 1] = start + kept
        rows, made = made, rows
        cost, new_cost = new_cost, cost
    value = cost[sequence[0]]
    target, joined = np.empty(n, np.int32), np.empty(n, np.int32)
    number = 0
    for at in range(n - 1, -1, -1):
        target[at] = choices[offsets[at] + number] // 16
        joined[at] = choices[offsets[at] + number] % 16
        number = parents[offsets[at] + number]
    return value, min(max(lower, value - lost), value, upper), target, joined, is_all


@compiled
def replay(f: Flat, costs: Costs, lay: Lanes, target: Small, joined: Small) -> Small:
    """int32[n]: the group of each unit, from the choices at each position."""
    n = len(target)
    row, names = np.zeros(width(lay), np.int32), np.empty(_WIDE, np.int32)
    for lane in range(_LANES, _LANES + 2 * lay.n_lanes, 2):
        row[lane] = -1
    real, group, count = np.zeros(_WIDE, np.int32), np.empty(n, np.int32), 0
    for at in range(n):
        if joined[at] == row[0]:
            real[joined[at]] = count
            count += 1
        group[lay.order[at]] = real[joined[at]]
        advance(f, costs, lay, at, target[at], joined[at], row, names)
        old = real.copy()
        for p in range(_WIDE):
            if names[p] >= 0:
                real[names[p]] = old[p]
    return group
