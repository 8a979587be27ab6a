"""Topological orders in which few tensors are alive, and where a state keeps those that are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.flat import Flat
from hal.planning.problem import Floats, Ints, Small

#: Lanes that fit the bits of a number; beyond, partitions are kept open for longer than they need to be.
_MOST_BITS = 62
#: Positions that are looked ahead for readers, and how many in all.
_AHEAD, _LOOKS = 256, 20_000_000


class Lanes(NamedTuple):
    """Where a state keeps the tensors that are made and not yet read by all.

    Attributes:
        order: int32[n]: units in the order in which they are placed.
        lane: int32[v]: of each tensor; -1 where nobody has to remember it.
        last: int32[v]: position of its last reader.
        group: int32[n]: lane of each unit's group; -1 for none.
        group_last: int32[n]: position of the last unit of the unit's group.
        n_lanes: Lanes.
        n_groups: Lanes of groups.
        next_at: int64[n + 1] and
        next: int64: after position p, the units that can come next, each as the tensors alive it depends on
            (bits of lanes), are ``next[next_at[p]:next_at[p + 1]]``; those that need more than another does
            are left out. Empty where there are more lanes than bits.
    """

    order: Small
    lane: Small
    last: Small
    group: Small
    group_last: Small
    n_lanes: int
    n_groups: int
    next_at: Ints
    next: Ints


@compiled
def narrow(f: Flat, sources_first: bool) -> Small:
    """int32[n]: units depth first from the ends, the deepest input first, so that few tensors are alive.

    Args:
        f: The problem.
        sources_first: Whether units that read nothing that is made come first, not right before their reader.

    Source: Sethi, Ullman, "The Generation of Optimal Code for Arithmetic Expressions", Journal of the ACM 17,
    1970, as a heuristic on graphs.
    """
    n = len(f.order)
    seen = np.zeros(n, np.bool_)
    order, size = np.empty(n, np.int32), 0
    stack, depth = np.empty(n, np.int32), 0
    following = f.reads_at[1:].copy()
    if sources_first:
        for at in range(n):
            unit = f.order[at]
            if is_source(f, unit):
                seen[unit] = True
                order[size] = unit
                size += 1
    for at in range(n):
        root = f.order[at]
        is_end = True
        for at_made in range(f.made_at[root], f.made_at[root + 1]):
            x = f.made[at_made]
            if f.readers_at[x + 1] > f.readers_at[x]:
                is_end = False
        if not is_end or seen[root]:
            continue
        stack[0], depth = root, 1
        seen[root] = True
        while depth:
            unit = stack[depth - 1]
            if following[unit] == f.reads_at[unit]:
                order[size] = unit
                size += 1
                depth -= 1
                continue
            following[unit] -= 1
            maker = f.producer[f.reads[following[unit]]]
            if maker >= 0 and not seen[maker]:
                seen[maker] = True
                stack[depth] = maker
                depth += 1
    return order


@compiled
def is_source(f: Flat, unit: int) -> bool:
    """Whether a unit reads nothing that a unit makes."""
    made = f.producer[f.reads[f.reads_at[unit] : f.reads_at[unit + 1]]]
    return len(made) == 0 or made.max() < 0


def upward(f: Flat) -> Floats:
    """float64[n]: the longest way from each unit to the end, each unit at its best time."""
    shortest = f.time.min(axis=1)
    return _upward(f, shortest)


@compiled
def _upward(f: Flat, shortest: Floats) -> Floats:
    rank = np.zeros(len(shortest))
    for at in range(len(shortest) - 1, -1, -1):
        unit = f.order[at]
        longest = 0.0
        for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[at_made]
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                longest = max(longest, rank[f.readers[at_reader]])
        rank[unit] = longest + shortest[unit]
    return rank


@compiled
def lanes(f: Flat, order: Small, same: Ints, tracked: Small) -> Lanes:
    """Lay the tensors of an order into as few lanes as there are at once."""
    n, v = len(order), len(f.producer)
    place = np.empty(n, np.int32)
    for at in range(n):
        place[order[at]] = at
    last = np.full(v, -1, np.int32)
    for x in range(v):
        for at in range(f.readers_at[x], f.readers_at[x + 1]):
            last[x] = max(last[x], place[f.readers[at]])
    lane = np.full(v, -1, np.int32)
    free, n_free, n_lanes = np.empty(v + 1, np.int32), 0, 0
    n_names = same.max() + 1 if n else 0
    ends = np.full(n_names, -1, np.int32)
    for at in range(n):
        if same[order[at]] >= 0:
            ends[same[order[at]]] = at
    group, group_last = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    of_name = np.full(n_names, -1, np.int32)
    free_groups, n_free_groups, n_groups = np.empty(n_names + 1, np.int32), 0, 0
    for at in range(n):
        unit = order[at]
        # Outside tensors that are remembered enter with their first reader; made ones with their maker.
        for entering in range(2):
            low = f.reads_at[unit] if entering == 0 else f.made_at[unit]
            high = f.reads_at[unit + 1] if entering == 0 else f.made_at[unit + 1]
            for number in range(low, high):
                x = f.reads[number] if entering == 0 else f.made[number]
                if lane[x] >= 0 or not tracked[x]:
                    continue
                if n_free:
                    n_free -= 1
                    lane[x] = free[n_free]
                else:
                    lane[x] = n_lanes
                    n_lanes += 1
            if entering == 0:
                for number in range(f.reads_at[unit], f.reads_at[unit + 1]):
                    x = f.reads[number]
                    if lane[x] >= 0 and last[x] == at:
                        free[n_free] = lane[x]
                        n_free += 1
        name = same[unit]
        if name >= 0:
            if of_name[name] < 0:
                if n_free_groups:
                    n_free_groups -= 1
                    of_name[name] = free_groups[n_free_groups]
                else:
                    of_name[name] = n_groups
                    n_groups += 1
            group[unit], group_last[unit] = of_name[name], ends[name]
            if ends[name] == at:
                free_groups[n_free_groups] = of_name[name]
                n_free_groups += 1
    next_at, following = np.zeros(n + 1, np.int64), np.zeros(0, np.int64)
    if n_lanes <= _MOST_BITS:
        next_at, following = _needs(f, order, place, lane, last)
    return Lanes(order, lane, last, group, group_last, n_lanes, n_groups, next_at, following)


@compiled
def _needs(f: Flat, order: Small, place: Small, lane: Small, last: Small) -> tuple[Ints, Ints]:
    """For each position the tensors alive that its possible next units depend on; see :class:`Lanes`."""
    n = len(order)
    ahead = max(_AHEAD, _LOOKS // n)
    at_of, found, size = np.zeros(n + 1, np.int64), np.empty(4 * n + 64, np.int64), 0
    depends = np.zeros(n, np.int64)
    alive = np.full(_MOST_BITS, -1, np.int32)
    for at in range(n):
        unit = order[at]
        for number in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[number]
            if f.producer[x] >= 0 and last[x] == at:
                alive[lane[x]] = -1
        for number in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[number]
            if lane[x] >= 0:
                alive[lane[x]] = x
        until = at
        for x in alive:
            if x >= 0:
                until = max(until, last[x])
        begin = size
        end = min(until + 1, at + 1 + ahead)
        for later in range(at + 1, end + _MOST_BITS):
            mask, is_direct = np.int64(0), False
            if later < end:
                unit = order[later]
                for number in range(f.reads_at[unit], f.reads_at[unit + 1]):
                    x = f.reads[number]
                    maker = f.producer[x]
                    if maker < 0:
                        continue
                    if place[maker] <= at:
                        mask |= np.int64(1) << lane[x]
                        is_direct = True
                    else:
                        mask |= depends[place[maker]]
                depends[later] = mask
            else:
                # Readers too far ahead are taken to depend on nothing else.
                x = alive[later - end]
                if x >= 0 and last[x] >= end:
                    mask, is_direct = np.int64(1) << (later - end), True
            if not is_direct:
                continue
            kept = begin
            for number in range(begin, size):
                if found[number] & mask == found[number]:
                    is_direct = False
                    break
            if not is_direct:
                continue
            for number in range(begin, size):
                if found[number] & mask != mask:
                    found[kept] = found[number]
                    kept += 1
            if kept == len(found):
                longer = np.empty(2 * kept, np.int64)
                longer[:kept] = found
                found = longer
            found[kept] = mask
            size = kept + 1
        at_of[at + 1] = size
    return at_of, found[:size].copy()


@compiled
def changes(f: Flat, lay: Lanes, most: int) -> Ints:
    """int64[n]: calls that changing over to another state takes at most; -1 where many tensors live.

    Args:
        f: The problem.
        lay: Its order.
        most: Partitions that a state keeps open.
    """
    n = len(lay.order)
    alive, found = np.zeros(n + 1, np.int64), np.full(n, -1, np.int64)
    for x in range(len(f.producer)):
        if lay.lane[x] >= 0 and f.producer[x] >= 0:
            alive[lay.last[x]] -= 1
    has_ended = False
    now = 0
    for at in range(n):
        unit = lay.order[at]
        is_end = True
        now += alive[at]
        for number in range(f.made_at[unit], f.made_at[unit + 1]):
            if lay.lane[f.made[number]] >= 0:
                now += 1
                is_end = False
        has_ended |= is_end
        alive[at] = now
        # All that came before leads to the one tensor alive, so only its partition is open.
        found[at] = 1 if now == 1 and not has_ended else most
    found[n - 1] = 0
    few = max(1, np.sort(alive[:n])[n // 4])
    found[:-1][alive[: n - 1] > few] = -1
    return found
