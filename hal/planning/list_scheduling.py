"""List scheduling: unit after unit in the order of a rank, each where it ends first; linear time."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.compiled import compiled
from hal.planning.domains import domains, groups
from hal.planning.flat import CHARGE_TARGET, Flat, flat
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget
from hal.planning.timeline import carried, fill, off_the_line, tails

#: How many calls of a silicon are looked at for a gap before them, the last ones first. Most gaps that a unit
#: fits are near the end, since units come in nearly the order in which they start; without a limit, long
#: plans take time quadratic in their length.
_GAPS = 64
#: How many ready units are compared in each step of ETF, those with the highest ranks.
_READY = 32


class Listed(NamedTuple):
    """A plan of list scheduling.

    Attributes:
        target: int32[n].
        unit_at: int32[n]: the units in the order in which they start.
    """

    target: Small
    unit_at: Small


def list_scheduling(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Offer the plans of several ranks, with and without insertion into gaps, and of earliest start first.

    All put memory before time: a target whose pool the weights of a unit's group would pass is used only
    where no target has room. With ``start="partition"`` neighbours on one target become one partition. A plan
    can be worse than one target alone, because each unit is placed without looking at what follows.

    Source: Topcuoglu, Hariri and Wu, "Performance-Effective and Low-Complexity Task Scheduling for
    Heterogeneous Computing", IEEE TPDS 13(3), 2002 (HEFT: upward rank, insertion); Arabnejad and Barbosa,
    "List Scheduling Algorithm for Heterogeneous Systems by an Optimistic Cost Table", IEEE TPDS 25(3), 2014
    (PEFT); Hwang, Chow, Anger and Lee, "Scheduling Precedence Graphs in Systems with Interprocessor
    Communication Times", SIAM J. Computing 18(2), 1989 (ETF).
    """
    for name in RULES:
        if budget.is_spent or best.is_optimal:
            return
        found = listed(problem, name)
        if found is None:
            return
        target, unit_at = found
        glued = np.full(problem.n_units, problem.start == "partition")
        best.offer(off_the_line(target, unit_at, glued), f"list scheduling ({name})")


#: The ways of :func:`listed`, the quickest first.
RULES = ("HEFT", "HEFT, insertion", "PEFT", "PEFT, insertion", "ETF")


def listed(problem: Problem, rule: str) -> Listed | None:
    """The plan of one way of list scheduling; None where a unit has no target.

    Args:
        problem: The problem.
        rule: One of :data:`RULES`.
    """
    allowed = domains(problem)
    if not allowed.any(axis=1).all():
        return None
    f = flat(problem)
    tail = tails(f)
    looks_ahead = rule.startswith("PEFT")
    if looks_ahead:
        rank = np.where(allowed, tail, 0).sum(axis=1) / allowed.sum(axis=1)
    else:
        rank = upward_rank(f, np.ascontiguousarray(allowed))
    group = groups(problem)
    return Listed(
        *_listed(
            f,
            np.ascontiguousarray(allowed),
            rank,
            tail if looks_ahead else np.zeros_like(tail),
            _READY if rule == "ETF" else 1,
            rule.endswith("insertion"),
            group,
            _weights(problem, group),
            problem.pool,
            problem.capacity,
        )
    )


def _weights(problem: Problem, group: Ints) -> Floats:
    """float64[g, t]: bytes of each group on each target."""
    weights = np.zeros((int(group.max()) + 1, problem.n_targets))
    np.add.at(weights, group, problem.weight_bytes)
    return weights


@compiled
def upward_rank(f: Flat, allowed: npt.NDArray[np.bool_]) -> Floats:
    """float64[n]: mean time of a unit and of the longest path behind it, transfers included.

    Means are over the targets that are allowed, and over all pairs of two targets.

    Source: Topcuoglu, Hariri and Wu, 2002, equation 8.
    """
    n, t = f.time.shape
    rank = np.zeros(n)
    for number in range(n - 1, -1, -1):
        unit = f.order[number]
        mean, count = 0.0, 0
        for b in range(t):
            if allowed[unit, b]:
                mean += f.time[unit, b] + (f.call[b] if f.by_unit else 0.0)
                count += 1
        behind = 0.0
        for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[at_made]
            handed = 0.0
            for a in range(t):
                for b in range(t):
                    if a != b:
                        handed += f.transfer[x, a, b] + f.send[x, a] + f.receive[x, b]
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                behind = max(behind, handed / max(1, t * (t - 1)) + rank[f.readers[at_reader]])
        rank[unit] = mean / count + behind
    return rank


@compiled
def _listed(
    f: Flat,
    allowed: npt.NDArray[np.bool_],
    rank: Floats,
    tail: Floats,
    n_compared: int,
    insertion: bool,
    group: Ints,
    weights: Floats,
    pool: Ints,
    capacity: Floats,
) -> tuple[Small, Small]:
    """Place ready units by rank; where several are compared, the one that can start first.

    Args:
        f: The problem.
        allowed: Targets of each unit.
        rank: Of each unit; high ones go first.
        tail: Added to the end on a target when targets are compared.
        n_compared: Ready units that are compared in each step; 1 for the order of the rank alone.
        insertion: Whether a unit may start in a gap between others.
        group: int[n]: units of a group share a target.
        weights: float64[groups, t]: bytes of a group.
        pool: Of each target.
        capacity: Of each pool.
    """
    n, t = f.time.shape
    n_silicons = len(f.slots)
    link_at = 2 * n_silicons
    width = link_at + f.link.max() + 1
    ports, trial, chosen = np.zeros(width), np.zeros(width), np.zeros(width)
    n_calls = np.zeros(n_silicons, np.int64)
    most_calls = n
    begins = [np.empty(most_calls if f.slots[s] == 1 else 0) for s in range(n_silicons)]
    finishes = [np.empty(most_calls if f.slots[s] == 1 else 0) for s in range(n_silicons)]
    slot_free = np.zeros((n_silicons, max(1, min(f.slots.max(), n))))
    last_on = np.full(n_silicons, -1, np.int64)
    target = np.full(n, -1, np.int32)
    start, end = np.zeros(n), np.zeros(n)
    arrived = np.full((len(f.producer) if f.charge == CHARGE_TARGET else 0, t), -1.0)
    home = np.full(len(weights), -1, np.int64)
    used = np.zeros(len(capacity))
    waiting = np.zeros(n, np.int32)
    for unit in range(n):
        for at in range(f.reads_at[unit], f.reads_at[unit + 1]):
            waiting[unit] += f.producer[f.reads[at]] >= 0
    position = np.empty(n, np.int64)
    for number in range(n):
        position[f.order[number]] = number
    ready = [(-rank[unit], position[unit]) for unit in range(n) if waiting[unit] == 0]
    heapq.heapify(ready)
    compared = np.empty(n_compared, np.int64)
    numbered = np.empty(n, np.int64)
    for number in range(n):
        n_now = min(n_compared, len(ready))
        for at in range(n_now):
            compared[at] = f.order[heapq.heappop(ready)[1]]
        pick, pick_b = -1, -1
        pick_room, pick_value, pick_start, pick_end = False, np.inf, np.inf, np.inf
        for at in range(n_now):
            unit = compared[at]
            g = group[unit]
            for b in range(t):
                if not allowed[unit, b] or (home[g] >= 0 and home[g] != b):
                    continue
                has_room = home[g] >= 0 or used[pool[b]] + weights[g, b] <= capacity[pool[b]]
                if pick >= 0 and pick_room and not has_room:
                    continue
                s = f.silicon[b]
                fill(trial, ports)
                there, taken = _handed(f, target, end, arrived, trial, unit, b, False)
                if f.by_unit or last_on[s] != b or f.slots[s] != 1:
                    taken += f.call[b]
                taken += f.time[unit, b]
                if f.slots[s] == 1:
                    begin = _gap(begins[s], finishes[s], n_calls[s], there, taken, insertion)
                elif f.slots[s] > 1:
                    begin = max(there, slot_free[s, _first_free(slot_free[s], f.slots[s])])
                else:
                    begin = there
                value = begin if n_compared > 1 else begin + taken + tail[unit, b]
                is_better = value < pick_value or (value == pick_value and begin + taken < pick_end)
                if pick < 0 or (has_room and not pick_room) or is_better:
                    pick, pick_b, pick_room, pick_value = unit, b, has_room, value
                    pick_start, pick_end = begin, begin + taken
                    fill(chosen, trial)
        for at in range(n_now):
            if compared[at] != pick:
                heapq.heappush(ready, (-rank[compared[at]], position[compared[at]]))
        b = pick_b
        s = f.silicon[b]
        if f.charge == CHARGE_TARGET:
            fill(trial, ports)
            _handed(f, target, end, arrived, trial, pick, b, True)
        fill(ports, chosen)
        target[pick], start[pick], end[pick] = b, pick_start, pick_end
        numbered[number] = pick
        last_on[s] = b
        if home[group[pick]] < 0:
            home[group[pick]] = b
            used[pool[b]] += weights[group[pick], b]
        if f.slots[s] == 1:
            _put(begins[s], finishes[s], n_calls[s], pick_start, pick_end)
            n_calls[s] += 1
        elif f.slots[s] > 1:
            slot_free[s, _first_free(slot_free[s], f.slots[s])] = pick_end
        for at_made in range(f.made_at[pick], f.made_at[pick + 1]):
            x = f.made[at_made]
            for at_reader in range(f.readers_at[x], f.readers_at[x + 1]):
                reader = f.readers[at_reader]
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    heapq.heappush(ready, (-rank[reader], position[reader]))
    # What is made starts no later than what reads it, and was placed before it.
    order = np.argsort(start[numbered], kind="mergesort")
    return target, numbered[order].astype(np.int32)


@compiled
def _handed(
    f: Flat, target: Small, end: Floats, arrived: Floats, ports: Floats, unit: int, b: int, keeps: bool
) -> tuple[float, float]:
    """When a unit's tensors are on a target, and what it takes there to receive them; ports are changed.

    Args:
        f: The problem.
        target: Of the units placed so far.
        end: Of these.
        arrived: float64[v, t]: when a tensor is there for all readers, or -1; empty where each pays.
        ports: When sending and receiving ports and links are free.
        unit: To be placed.
        b: Its target.
        keeps: Whether to fill in ``arrived``.
    """
    n_silicons = len(f.slots)
    s = f.silicon[b]
    there, taken = 0.0, 0.0
    for at in range(f.reads_at[unit], f.reads_at[unit + 1]):
        x = f.reads[at]
        maker = f.producer[x]
        if len(arrived) and arrived[x, b] >= 0:
            there = max(there, arrived[x, b])
            continue
        arrival = 0.0
        if maker < 0:
            taken += f.receive[x, b]
        else:
            a = target[maker]
            arrival = end[maker]
            long = f.transfer[x, a, b]
            if a != b:
                taken += f.receive[x, b]
            if f.silicon[a] == s or not f.overlap:
                if a != b or f.by_unit:
                    taken += long
            elif long > 0:
                arrival = carried(f, ports, n_silicons, 2 * n_silicons, a, b, arrival, long)
        there = max(there, arrival)
        if keeps:
            arrived[x, b] = arrival
    return there, taken


@compiled
def _first_free(slot_free: Floats, slots: int) -> int:
    """The slot that is free first."""
    first = 0
    for slot in range(1, min(slots, len(slot_free))):
        if slot_free[slot] < slot_free[first]:
            first = slot
    return first


@compiled
def _gap(
    begins: Floats, finishes: Floats, n_calls: int, there: float, taken: float, insertion: bool
) -> float:
    """The first time a silicon is free for so long, from a time on."""
    found = max(there, finishes[n_calls - 1]) if n_calls else there
    if not insertion:
        return found
    for at in range(n_calls - 1, max(n_calls - 1 - _GAPS, -1), -1):
        after = finishes[at - 1] if at else 0.0
        if max(there, after) + taken <= begins[at]:
            found = max(there, after)
        if after <= there:
            break
    return found


@compiled
def _put(begins: Floats, finishes: Floats, n_calls: int, begin: float, finish: float) -> None:
    """Put a call among the calls of a silicon, in the order of their begins."""
    at = n_calls
    while at and (begins[at - 1] > begin or (begins[at - 1] == begin and finishes[at - 1] > finish)):
        begins[at], finishes[at] = begins[at - 1], finishes[at - 1]
        at -= 1
    begins[at], finishes[at] = begin, finish
