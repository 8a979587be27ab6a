"""Rules of a plan as annealing weighs them, and the steps of annealing, compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.domains import domains, groups
from hal.planning.flat import Flat
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.slack import settle
from hal.planning.timeline import Bools, Line, fill, keep, move, reach, span, timed

#: Of all steps, those that move a unit along the line; put one unit (or group) on another target; a connected
#: set; a stretch of the line; the rest swaps two targets.
_MOVES = (0.25, 0.6, 0.85, 0.98)
#: The same where memory is tight, so that what does not fit one by one is swapped more often.
_TIGHT_MOVES = (0.2, 0.5, 0.7, 0.8)
#: Share of steps that look for a unit on a longest path, and how often they look.
_CRITICAL, _TRIES = 0.5, 16
#: Share of all memory that weights fill, above which it is tight.
_TIGHT = 0.5
#: Share of steps that join or split partitions.
_TOGGLES = 0.05


class Rules(NamedTuple):
    """What a plan must keep beside its order, as annealing weighs it.

    Attributes:
        group: int32[n]: units of one group move together.
        members_at: int32[g + 1]; units of group g are ``members[members_at[g]:members_at[g + 1]]``.
        members: int32[n].
        choices_at: int32[g + 1]; targets that can compute all of group g are
            ``choices[choices_at[g]:choices_at[g + 1]]``.
        choices: int32[...].
        pool: int32[t].
        weight: float64[n, t]: bytes.
        error: float64[n, t].
        limits: float64[m + 1]: bytes of each pool, then the sum of errors.
        most: int64[t]: partitions of each target; 0 for any.
        most_in_all: Partitions; 0 for any.
    """

    group: Small
    members_at: Small
    members: Small
    choices_at: Small
    choices: Small
    pool: Small
    weight: Floats
    error: Floats
    limits: Floats
    most: Ints
    most_in_all: int


def rules(problem: Problem) -> Rules:
    """The rules of a problem that has a target for each unit."""
    group = groups(problem)
    count = int(group.max()) + 1
    allowed = np.zeros((count, problem.n_targets), np.bool_)
    allowed[group] = domains(problem)
    counts = problem.start == "partition"
    return Rules(
        group=group.astype(np.int32),
        members_at=np.concatenate([[0], np.cumsum(np.bincount(group, minlength=count))]).astype(np.int32),
        members=np.argsort(group, kind="stable").astype(np.int32),
        choices_at=np.concatenate([[0], np.cumsum(allowed.sum(axis=1))]).astype(np.int32),
        choices=np.nonzero(allowed)[1].astype(np.int32),
        pool=problem.pool.astype(np.int32),
        weight=problem.weight_bytes.astype(np.float64),
        error=problem.error,
        limits=np.append(problem.capacity, problem.max_error),
        most=problem.partitions_per_target * counts,
        most_in_all=problem.max_partitions * counts,
    )


@compiled
def used(r: Rules, plan: Line) -> Floats:
    """float64[m + 1]: weights in each pool, then the error."""
    found = np.zeros(len(r.limits))
    for unit in range(len(plan.target)):
        b = plan.target[unit]
        found[r.pool[b]] += r.weight[unit, b]
        found[-1] += r.error[unit, b]
    return found


@compiled
def put(r: Rules, plan: Line, use: Floats, unit: int, b: int) -> None:
    """Put a unit on a target, and keep the sums of :func:`used` up to date."""
    a = plan.target[unit]
    use[r.pool[a]] -= r.weight[unit, a]
    use[r.pool[b]] += r.weight[unit, b]
    use[-1] += r.error[unit, b] - r.error[unit, a]
    plan.target[unit] = b


@compiled
def broken_by(r: Rules, plan: Line, use: Floats) -> float:
    """How far the rules are broken, each relative to its limit; 0 where all hold."""
    found = 0.0
    for number in range(len(use)):
        # Sums that are kept up to date step by step differ in their last digits.
        if use[number] > r.limits[number] * (1 + 1e-10):
            found += (use[number] - r.limits[number]) / max(r.limits[number], 1e-30)
    if r.most_in_all > 0 or r.most.max() > 0:
        count = np.zeros(len(r.most), np.int64)
        before = -1
        for unit in plan.unit_at:
            b = plan.target[unit]
            if b != before or not plan.glued[unit]:
                count[b] += 1
            before = b
        for b in range(len(r.most)):
            if r.most[b] > 0 and count[b] > r.most[b]:
                found += (count[b] - r.most[b]) / r.most[b]
        if r.most_in_all > 0 and count.sum() > r.most_in_all:
            found += (count.sum() - r.most_in_all) / r.most_in_all
    return found


@compiled
def below(random: np.random.Generator, high: int) -> int:
    """A whole number from 0 to below another; quicker than the generator's own way, and to compile."""
    return int(random.random() * high)


@compiled
def steps(
    f: Flat,
    r: Rules,
    plan: Line,
    random: np.random.Generator,
    n_steps: int,
    temperature: float,
    price: float,
    state: Floats,
    best_target: Small,
    best_unit_at: Small,
    best_glued: Bools,
) -> int:
    """Anneal for a number of steps at one temperature.

    Args:
        f: The problem.
        r: Its rules.
        plan: The plan, evaluated; changed.
        random: Where chance comes from.
        n_steps: Steps.
        temperature: In the unit of time.
        price: Of broken rules, in the unit of time.
        state: Latency of the line, of the best line that keeps the rules, and how far the line breaks them;
            changed.
        best_target: Of that line; changed, as are the next two.
        best_unit_at: Likewise.
        best_glued: Likewise.

    Returns:
        Accepted steps.
    """
    n = len(plan.place)
    has_send = f.send.size > 0 and f.send.max() > 0
    use = used(r, plan)
    now, broken = state[0], broken_by(r, plan, use)
    is_tight = use[:-1].sum() > _TIGHT * r.limits[:-1].sum()
    moves = _TIGHT_MOVES if is_tight else _MOVES
    moved, was = np.empty(n, np.int32), np.empty(n, np.int32)
    seen = np.zeros(n, np.int64)
    accepted = 0
    for step in range(1, n_steps + 1):
        n_moved = 0
        at = to = toggled = -1
        first, last = n, 0
        unit = below(random, n)
        if random.random() < _CRITICAL:
            # Only what lies on a longest path, or next to it, can make the plan shorter.
            for _ in range(_TRIES):
                if plan.ends[unit] + plan.late[plan.head[unit]] >= now * (1 - 1e-9):
                    break
                unit = below(random, n)
        if not f.by_unit and random.random() < _TOGGLES:
            toggled = unit
            plan.glued[unit] = not plan.glued[unit]
            first, last = span(f, plan, unit, has_send)
        else:
            dice = random.random()
            if dice >= moves[0]:
                a = plan.target[unit]
                b, other = a, unit
                if dice >= moves[3]:
                    other = below(random, n)
                    b = plan.target[other]
                else:
                    if random.random() < 0.5:
                        b = _neighbour_target(f, plan, unit, random)
                    if b == a:
                        g = r.group[unit]
                        b = r.choices[r.choices_at[g] + below(random, r.choices_at[g + 1] - r.choices_at[g])]
                if b == a:
                    continue
                n_moved = take(r, plan, unit, b, moved, 0, seen, step)
                # Small sets are likely, large ones possible: a size s has a chance of about 1 / s^2.
                size = int(1 / (random.random() + 1.0 / n))
                if dice >= moves[3]:
                    if n_moved:
                        n_other = take(r, plan, other, a, moved, n_moved, seen, step)
                        for number in range(n_moved, n_other):
                            was[number] = a
                        for number in range(n_moved):
                            was[number] = b
                        n_moved = n_other
                else:
                    if dice >= moves[2]:
                        for place in range(plan.place[unit] + 1, min(n, plan.place[unit] + size)):
                            if plan.target[plan.unit_at[place]] == a:
                                n_moved = take(r, plan, plan.unit_at[place], b, moved, n_moved, seen, step)
                    elif dice >= moves[1]:
                        n_moved = _grow(f, r, plan, a, b, size, moved, n_moved, seen, step)
                    for number in range(n_moved):
                        was[number] = b
                if n_moved == 0:
                    continue
                for number in range(n_moved):
                    u, b = moved[number], was[number]
                    was[number] = plan.target[u]
                    low, high = span(f, plan, u, has_send)
                    first, last = min(first, low), max(last, high)
                    put(r, plan, use, u, b)
            if dice < moves[0] or (dice < moves[1] and n_moved == 1 and random.random() < 0.4):
                at = plan.place[unit]
                low, high = reach(f, plan, unit)
                if random.random() < 0.5:
                    low, high = max(low, at - 8), min(high, at + 8)
                to = low + below(random, high + 1 - low)
                if not f.by_unit and random.random() < 0.7:
                    to = _beside(plan, unit, at, to)
                if to == at and n_moved == 0:
                    continue
                low, high = span(f, plan, unit, has_send)
                move(plan, at, to)
                first, last = min(first, low, to), max(last, high, to)
        broken_now = broken_by(r, plan, use)
        limit = now + price * (broken - broken_now) - temperature * np.log(1 - random.random())
        value, restart, stop = np.inf, 0, 0
        if limit > 0:
            value, restart, stop = timed(f, plan, first, last, limit)
        if value <= limit:
            accepted += 1
            keep(f, plan, restart, stop)
            settle(f, plan, restart, stop)
            now, broken = value, broken_now
            if broken == 0 and now < state[1] * (1 - 1e-12):
                state[1] = now
                fill(best_target, plan.target)
                fill(best_unit_at, plan.unit_at)
                fill(best_glued, plan.glued)
            continue
        if to >= 0:
            move(plan, to, at)
        if toggled >= 0:
            plan.glued[toggled] = not plan.glued[toggled]
        for number in range(n_moved):
            put(r, plan, use, moved[number], was[number])
    state[0], state[2] = now, broken
    return accepted


@compiled
def _neighbour_target(f: Flat, plan: Line, unit: int, random: np.random.Generator) -> int:
    """The target of a unit that makes or reads what this one reads or makes."""
    neighbour = np.int32(unit)
    n_reads = f.reads_at[unit + 1] - f.reads_at[unit]
    n_made = f.made_at[unit + 1] - f.made_at[unit]
    if n_reads + n_made:
        pick = below(random, n_reads + n_made)
        if pick < n_reads:
            maker = f.producer[f.reads[f.reads_at[unit] + pick]]
            neighbour = maker if maker >= 0 else neighbour
        else:
            x = f.made[f.made_at[unit] + pick - n_reads]
            low, high = f.readers_at[x], f.readers_at[x + 1]
            neighbour = f.readers[low + below(random, high - low)] if high > low else neighbour
    return int(plan.target[neighbour])


@compiled
def take(r: Rules, plan: Line, unit: int, b: int, moved: Small, n_moved: int, seen: Ints, mark: int) -> int:
    """Note that a unit's group goes to a target, if it can be there and does not go already.

    Args:
        r: The rules.
        plan: The line; not changed.
        unit: Its group moves.
        b: The target.
        moved: Units that move; filled in.
        n_moved: Their number.
        seen: The last mark of each unit that moved.
        mark: Of this step.

    Returns:
        The new number of units that move.
    """
    g = r.group[unit]
    if seen[unit] == mark or plan.target[unit] == b:
        return n_moved
    is_allowed = False
    for at in range(r.choices_at[g], r.choices_at[g + 1]):
        is_allowed = is_allowed or r.choices[at] == b
    if not is_allowed:
        return n_moved
    for at in range(r.members_at[g], r.members_at[g + 1]):
        seen[r.members[at]] = mark
        moved[n_moved] = r.members[at]
        n_moved += 1
    return n_moved


@compiled
def _grow(
    f: Flat,
    r: Rules,
    plan: Line,
    a: int,
    b: int,
    size: int,
    moved: Small,
    n_moved: int,
    seen: Ints,
    mark: int,
) -> int:
    """Note that about so many units go from a to b, breadth first around those that go already."""
    at = 0
    while at < n_moved and n_moved < size:
        u = moved[at]
        at += 1
        for at_read in range(f.reads_at[u], f.reads_at[u + 1]):
            maker = f.producer[f.reads[at_read]]
            if maker >= 0 and plan.target[maker] == a and n_moved < size:
                n_moved = take(r, plan, maker, b, moved, n_moved, seen, mark)
        for at_made in range(f.made_at[u], f.made_at[u + 1]):
            x = f.made[at_made]
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                reader = f.readers[at_reader]
                if plan.target[reader] == a and n_moved < size:
                    n_moved = take(r, plan, reader, b, moved, n_moved, seen, mark)
    return n_moved


@compiled
def _beside(plan: Line, unit: int, at: int, to: int) -> int:
    """A place on the way to another where the unit stands behind or before one of its own target."""
    step = 1 if to > at else -1
    while to != at:
        if plan.target[plan.unit_at[to]] == plan.target[unit]:
            return to
        to -= step
    return at
