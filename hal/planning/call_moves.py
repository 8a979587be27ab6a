"""Annealing over partitions: moves of units and of whole parts of a plan, an evaluation in microseconds.

A state gives each unit a target and a group; groups that hold together become partitions, in an order that
:func:`number` finds, and a group that cannot run in one piece is split where it gets stuck.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.compiled import compiled
from hal.planning.evaluate import walk
from hal.planning.flat import Flat
from hal.planning.problem import Floats, Ints, Small

Flags = npt.NDArray[np.bool_]


class Rules(NamedTuple):
    """What a move must respect, and what guides it.

    Attributes:
        order: int32[n]: units in the topological order whose intervals are moved.
        place: int32[n]: position of each unit in it.
        rank: float64[n]: groups with a higher rank go first where both could.
        alone: bool[t]: units of this target form partitions of their own, because that costs nothing.
        item: int32[n]: units of one item share a target.
        item_at: int32[items + 1] and
        items: int32[n]: the units of each item.
        weight: float64[n, t]: bytes.
        error: float64[n, t].
        pool: int32[t].
        limits: float64[m + 1]: bytes of each pool, then the error.
        per_target: int64[t]: most partitions, 0 for any.
        most: Most partitions, 0 for any.
        objective: Which of the values of :func:`~hal.planning.evaluate.walk`.
    """

    order: Small
    place: Small
    rank: Floats
    alone: Flags
    item: Small
    item_at: Small
    items: Small
    weight: Floats
    error: Floats
    pool: Small
    limits: Floats
    per_target: Ints
    most: int
    objective: int


@compiled
def number(f: Flat, target: Small, group: Small, rank: Floats, per_target: Ints, partition: Small) -> int:
    """Number groups in a topological order, split those that lie on a cycle.

    Kahn's algorithm over groups: of those whose inputs are there, the one with the highest rank is next.
    Where there is none, the part that can run of the group with the highest rank goes first, alone.

    Args:
        f: The problem.
        target: Of each unit.
        group: Of each unit, below 2 n.
        rank: Of each unit; of a group the highest.
        per_target: A target with a limit of 1 is not split.
        partition: int32[n], filled in.

    Returns:
        The number of partitions; 0 where a group would have to be split that must not be.
    """
    n = len(target)
    first, following = np.full(2 * n, -1, np.int32), np.full(n, -1, np.int32)
    waits, height = np.zeros(2 * n, np.int32), np.full(2 * n, -1.0)
    owed = np.zeros(n, np.int32)
    ready, free, stack = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    for unit in range(n - 1, -1, -1):
        g = group[unit]
        following[unit] = first[g]
        first[g] = unit
        height[g] = max(height[g], rank[unit])
        for at in range(f.reads_at[unit], f.reads_at[unit + 1]):
            maker = f.producer[f.reads[at]]
            if maker >= 0:
                owed[unit] += 1
                waits[g] += group[maker] != g
    n_ready = n_free = done = count = 0
    for unit in range(n):
        partition[unit] = -1
        g = group[unit]
        if first[g] == unit and waits[g] == 0:
            if f.slots[f.silicon[target[unit]]] == 0:
                free[n_free] = g
                n_free += 1
            else:
                ready[n_ready] = g
                n_ready += 1
    # Once groups have to be split: the units of each that could run, and the groups that have some.
    able, able_next, parts = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32)
    n_parts = 0
    is_splitting = False
    while done < n:
        n_stack = 0
        if n_free or n_ready:
            if n_free:
                n_free -= 1
                g = free[n_free]
            else:
                at_best = 0
                for at in range(1, n_ready):
                    if height[ready[at]] > height[ready[at_best]]:
                        at_best = at
                g = ready[at_best]
                n_ready -= 1
                ready[at_best] = ready[n_ready]
            unit = first[g]
            while unit >= 0:
                if partition[unit] < 0 and owed[unit] == 0:
                    stack[n_stack] = unit
                    n_stack += 1
                unit = following[unit]
        else:
            # Every group waits for another: of those that could begin, split the one with the highest rank.
            if not is_splitting:
                is_splitting = True
                able, able_next = np.full(2 * n, -1, np.int32), np.empty(n, np.int32)
                parts = np.empty(2 * n, np.int32)
                for unit in range(n):
                    if partition[unit] < 0 and owed[unit] == 0:
                        g = group[unit]
                        if able[g] < 0:
                            parts[n_parts] = g
                            n_parts += 1
                        able_next[unit] = able[g]
                        able[g] = unit
            at_best = -1
            at = 0
            while at < n_parts:
                if able[parts[at]] < 0:
                    n_parts -= 1
                    parts[at] = parts[n_parts]
                    continue
                if at_best < 0 or height[parts[at]] > height[parts[at_best]]:
                    at_best = at
                at += 1
            g = parts[at_best]
            if per_target[target[able[g]]] == 1:
                return 0
            unit = able[g]
            while unit >= 0:
                stack[n_stack] = unit
                n_stack += 1
                unit = able_next[unit]
        if is_splitting:
            able[g] = -1
        while n_stack:
            n_stack -= 1
            unit = stack[n_stack]
            partition[unit] = count
            done += 1
            for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
                x = f.made[at_made]
                for at in range(f.readers_at[x], f.readers_at[x + 1]):
                    reader = f.readers[at]
                    owed[reader] -= 1
                    h = group[reader]
                    if h == g:
                        if owed[reader] == 0:
                            stack[n_stack] = reader
                            n_stack += 1
                        continue
                    if owed[reader] == 0 and is_splitting:
                        if able[h] < 0:
                            parts[n_parts] = h
                            n_parts += 1
                        able_next[reader] = able[h]
                        able[h] = reader
                    waits[h] -= 1
                    if waits[h] == 0:
                        if f.slots[f.silicon[target[reader]]] == 0:
                            free[n_free] = h
                            n_free += 1
                        else:
                            ready[n_ready] = h
                            n_ready += 1
        count += 1
    return count


@compiled
def worth(
    f: Flat, rules: Rules, target: Small, group: Small, partition: Small, starts: Floats, ends: Floats
) -> tuple[float, int]:
    """The objective of a state and its number of partitions; infinite where the state is not legal."""
    count = number(f, target, group, rules.rank, rules.per_target, partition)
    if count == 0 or (rules.most and count > rules.most):
        return np.inf, 0
    values = walk(f, target, partition, starts[:count], ends[:count], np.empty((0, 0)), np.empty(0))
    return values[rules.objective], count


@compiled
def anneal(
    f: Flat,
    rules: Rules,
    target: Small,
    group: Small,
    best_target: Small,
    best_group: Small,
    hot: float,
    cold: float,
    steps: int,
    seed: int,
) -> tuple[float, float, float]:
    """Simulated annealing from a state; leaves the last state and the best one in the arrays.

    Args:
        f: The problem.
        rules: Its constraints.
        target: Of each unit, changed.
        group: Of each unit, changed; numbered as partitions afterwards.
        best_target: Filled in where a better one was found.
        best_group: Filled in likewise.
        hot: Temperature at the first step, in the objective's unit.
        cold: At the last.
        steps: Evaluations, those moves apart that can be seen to be illegal.
        seed: Of the random numbers.

    Returns:
        The objective of the best state that keeps the limits, infinite where there is none; that of the last
        state; and by what share in sum it passes its limits.

    Source: Kirkpatrick, Gelatt, Vecchi, "Optimization by Simulated Annealing", Science 220, 1983; moves of
    the kind that Tarnawski et al. use for their local search ("Efficient Algorithms for Device Placement of
    DNN Graph Operators", NeurIPS 2020), extended by the parts of a group that stay convex.
    """
    np.random.seed(seed)
    n, n_targets = f.time.shape
    n_pools = len(rules.limits) - 1
    partition = np.empty(n, np.int32)
    starts, ends = np.empty(n), np.empty(n)
    current, count = worth(f, rules, target, group, partition, starts, ends)
    found = np.inf
    use = np.zeros(n_pools + 1)
    used = np.zeros(n_targets, np.int64)
    home = np.zeros(n_targets, np.int32)
    for unit in range(n):
        use[rules.pool[target[unit]]] += rules.weight[unit, target[unit]]
        use[n_pools] += rules.error[unit, target[unit]]
    over = excess(use, rules.limits)
    if current < np.inf:
        group[:] = partition
        settle(target, group, count, used, home)
        if over_count(target, partition, count, rules.per_target):
            current = np.inf
    fresh = group.max() + 1
    if over == 0.0 and current < np.inf:
        found = current
        best_target[:], best_group[:] = target, group
    chosen, seen = np.empty(n, np.int32), np.zeros(n, np.bool_)
    old_target, old_group = np.empty(n, np.int32), np.empty(n, np.int32)
    new_use = use.copy()
    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    heat = hot
    for _ in range(steps):
        heat *= cooling
        unit = np.random.randint(n)
        b, joined = destination(f, rules, target, group, unit, used, home)
        if b < 0:
            continue
        size = pick(f, rules, target, group, unit, b, joined, chosen, seen)
        if size == 0:
            continue
        new_use[:] = use
        for at in range(size):
            moved = chosen[at]
            a = target[moved]
            new_use[rules.pool[a]] -= rules.weight[moved, a]
            new_use[n_pools] += rules.error[moved, b] - rules.error[moved, a]
            new_use[rules.pool[b]] += rules.weight[moved, b]
        new_over = excess(new_use, rules.limits)
        if new_over > over:
            continue
        next_group = fresh
        for at in range(size):
            moved = chosen[at]
            old_target[at], old_group[at] = target[moved], group[moved]
            target[moved] = b
            group[moved] = next_group if joined < 0 else joined
            if rules.alone[b]:
                next_group += 1
        value, new_count = worth(f, rules, target, group, partition, starts, ends)
        if value < np.inf and over_count(target, partition, new_count, rules.per_target):
            value = np.inf
        if value < np.inf and (
            value <= current or new_over < over or np.random.random() < math.exp((current - value) / heat)
        ):
            current, over, count = value, new_over, new_count
            use[:] = new_use
            group[:] = partition
            settle(target, group, count, used, home)
            fresh = count
            if over == 0.0 and current < found * (1 - 1e-12):
                found = current
                best_target[:], best_group[:] = target, group
        else:
            for at in range(size):
                target[chosen[at]], group[chosen[at]] = old_target[at], old_group[at]
    return found, current, over


@compiled
def excess(use: Floats, limits: Floats) -> float:
    """By what shares the uses pass their limits, summed."""
    over = 0.0
    for at in range(len(limits)):
        if use[at] > limits[at] * (1 + 1e-9):
            over += use[at] / limits[at] - 1 if limits[at] > 0 else use[at]
    return over


@compiled
def settle(target: Small, group: Small, count: int, used: Ints, home: Small) -> None:
    """How many groups each target has, and one of them."""
    used[:] = 0
    seen = np.zeros(count, np.bool_)
    for unit in range(len(target)):
        g, b = group[unit], target[unit]
        if not seen[g]:
            seen[g] = True
            used[b] += 1
            if np.random.randint(used[b]) == 0:
                home[b] = g


@compiled
def over_count(target: Small, partition: Small, count: int, per_target: Ints) -> bool:
    """Whether a target has more partitions than it may."""
    if per_target.max() == 0:
        return False
    used = np.zeros(len(per_target), np.int64)
    seen = np.zeros(count, np.bool_)
    for unit in range(len(target)):
        if not seen[partition[unit]]:
            seen[partition[unit]] = True
            b = target[unit]
            used[b] += 1
            if per_target[b] and used[b] > per_target[b]:
                return True
    return False


@compiled
def destination(
    f: Flat, rules: Rules, target: Small, group: Small, unit: int, used: Ints, home: Small
) -> tuple[int, int]:
    """A target for a move, and a group to join; the group is -1 for a new one, the target -1 for no move."""
    if np.random.random() < 0.7:
        reads, makes = f.reads_at[unit + 1] - f.reads_at[unit], f.made_at[unit + 1] - f.made_at[unit]
        if reads + makes == 0:
            return -1, -1
        at = np.random.randint(reads + makes)
        if at < reads:
            other = f.producer[f.reads[f.reads_at[unit] + at]]
        else:
            x = f.made[f.made_at[unit] + at - reads]
            readers = f.readers_at[x + 1] - f.readers_at[x]
            other = -1 if readers == 0 else f.readers[f.readers_at[x] + np.random.randint(readers)]
        if other < 0:
            return -1, -1
        b = target[other]
        return (b, -1) if rules.alone[b] else (b, group[other])
    b = np.random.randint(f.time.shape[1])
    if rules.alone[b] or used[b] == 0:
        return b, -1
    if (rules.per_target[b] and used[b] >= rules.per_target[b]) or np.random.random() < 0.3:
        return b, home[b]
    return b, -1


@compiled
def pick(
    f: Flat,
    rules: Rules,
    target: Small,
    group: Small,
    unit: int,
    b: int,
    joined: int,
    chosen: Small,
    seen: Flags,
) -> int:
    """Units to move to a target: an item, what is before or after it in its group, an interval, a group."""
    n = len(target)
    kind = np.random.random()
    size = 0
    a, g = target[unit], group[unit]
    if kind < 0.4:
        size = add(rules, unit, chosen, seen, size)
    elif kind < 0.7:
        after = np.random.random() < 0.5
        most = 1 + np.random.randint(20) if rules.alone[a] else n
        size = add(rules, unit, chosen, seen, size)
        at = 0
        while at < size and size < most:
            one = chosen[at]
            at += 1
            if after:
                for at_made in range(f.made_at[one], f.made_at[one + 1]):
                    x = f.made[at_made]
                    for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                        other = f.readers[at_reader]
                        if not seen[other] and target[other] == a and (rules.alone[a] or group[other] == g):
                            size = add(rules, other, chosen, seen, size)
            else:
                for at_read in range(f.reads_at[one], f.reads_at[one + 1]):
                    other = f.producer[f.reads[at_read]]
                    if (
                        other >= 0
                        and not seen[other]
                        and target[other] == a
                        and (rules.alone[a] or group[other] == g)
                    ):
                        size = add(rules, other, chosen, seen, size)
    elif kind < 0.95 or rules.alone[a]:
        length = int(math.exp(np.random.random() * math.log(max(2.0, n / 3)))) + 1
        for at in range(rules.place[unit], min(n, rules.place[unit] + length)):
            if not seen[rules.order[at]]:
                size = add(rules, rules.order[at], chosen, seen, size)
    else:
        for other in range(n):
            if group[other] == g and not seen[other]:
                size = add(rules, other, chosen, seen, size)
    kept = 0
    for at in range(size):
        seen[chosen[at]] = False
    for at in range(size):
        one = chosen[at]
        if target[one] == b and (joined < 0 or group[one] == joined) and (joined >= 0 or rules.alone[b]):
            continue
        if not np.isfinite(f.time[one, b]):
            return 0
        chosen[kept] = one
        kept += 1
    return kept


@compiled
def add(rules: Rules, unit: int, chosen: Small, seen: Flags, size: int) -> int:
    """Choose a unit and those of its item."""
    item = rules.item[unit]
    for at in range(rules.item_at[item], rules.item_at[item + 1]):
        other = rules.items[at]
        if not seen[other]:
            seen[other] = True
            chosen[size] = other
            size += 1
    return size
