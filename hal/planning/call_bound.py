"""A lower bound of latency from one path: every call on it must do all that lies between its ends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.flat import CHARGE_TARGET, Flat, flat
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget
from hal.planning.violations import SLACK

#: Units of a path up to which all its intervals are looked at: for each target as many numbers as its square.
_MOST_UNITS = 400
#: Units of the problem times units of the path up to which it is done: a second at most.
_MOST_WORK = 2_000_000
#: Share that sums of floating-point numbers may be off.
_ROUNDING = 1e-10
_SOURCE = "intervals of a path that calls can cover"


def applies(problem: Problem) -> bool:
    """Whether units share calls and the objective is latency."""
    return problem.start == "partition" and problem.objective == "latency"


def call_bound(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Prove a bound: the cheapest way to cut a path of the graph into calls.

    Proof. The units of a path that one partition computes follow each other on it: the path cannot come back,
    because partitions run in an order. So any plan cuts the path into intervals, which run one after the
    other, each followed by the handoff to the next. Let a partition of target b hold units i to j of the
    path. It holds all units on ways from i to j as well. Where b has no other partition, it holds those that
    must share their device, receives what they read and makers that lead to i - 1 made, and sends what they
    make and readers behind j + 1 read: neither can be inside. All that takes its time, and the weights must
    fit. The dynamic program takes the cheapest cut, with no more intervals than there may be partitions.

    Paths that are tried: the longest at each unit's best time, and at its mean time. Applies to latency with
    ``start="partition"``.

    Source: our own, from the convexity that Tarnawski et al., "Efficient Algorithms for Device Placement of
    DNN Graph Operators", NeurIPS 2020, use for their dynamic program over ideals.

    Args:
        problem: The problem.
        best: Takes the bound.
        budget: Time.
        seed: Not used; nothing is random.
    """
    if not applies(problem):
        return
    f = flat(problem)
    finite = np.where(problem.allowed, problem.time, 0)
    mean = finite.sum(axis=1) / np.maximum(problem.allowed.sum(axis=1), 1)
    kinds = _kinds(problem)
    # A little for each unit, so that units that take no time are on the path too.
    for length in (problem.time.min(axis=1), mean):
        if budget.is_spent or best.is_optimal or not np.isfinite(length).all():
            return
        path = _longest(f, length + 1e-9 * length.max() + 1e-30)
        if len(path) <= _MOST_UNITS and len(path) * problem.n_units <= _MOST_WORK:
            best.prove(_cut(problem, f, kinds, path) * (1 - _ROUNDING), _SOURCE)


class _Kinds(NamedTuple):
    """Targets that differ in nothing, once each.

    Attributes:
        target: int64[kinds]: one of each.
        other: int64[kinds]: a second one; the same where there is only one.
        single: bool[kinds]: whether each may have one partition only.
        counted: bool[kinds]: whether the number of partitions is limited.
        most: Partitions that counted kinds have in all.
    """

    target: Ints
    other: Ints
    single: np.ndarray[tuple[int], np.dtype[np.bool_]]
    counted: np.ndarray[tuple[int], np.dtype[np.bool_]]
    most: int


def _kinds(problem: Problem) -> _Kinds:
    members: list[list[int]] = []
    for b in range(problem.n_targets):
        for kind in members:
            if _are_alike(problem, kind[0], b):
                kind.append(b)
                break
        else:
            members.append([b])
    limit = problem.partitions_per_target
    counted = np.array([limit[kind[0]] > 0 for kind in members])
    most = sum(int(limit[kind[0]]) * len(kind) for kind in members if limit[kind[0]] > 0)
    if problem.max_partitions > 0 and (not counted.any() or problem.max_partitions < most):
        counted, most = np.ones(len(members), np.bool_), problem.max_partitions
    return _Kinds(
        target=np.array([kind[0] for kind in members]),
        other=np.array([kind[min(1, len(kind) - 1)] for kind in members]),
        single=np.array([limit[kind[0]] == 1 for kind in members]),
        counted=counted,
        most=min(most, _MOST_UNITS),
    )


def _are_alike(problem: Problem, a: int, b: int) -> bool:
    """Whether two targets differ in nothing but their names; each has a silicon of its own."""
    swap = np.arange(problem.n_targets)
    swap[a], swap[b] = b, a
    columns = (problem.time, problem.send, problem.receive, problem.weight_bytes)
    if any((values[:, a] != values[:, b]).any() for values in columns):
        return False
    if problem.call[a] != problem.call[b] or np.isin(problem.silicon, problem.silicon[[a, b]]).sum() != 2:
        return False
    if problem.partitions_per_target[a] != problem.partitions_per_target[b]:
        return False
    if problem.capacity[problem.pool[a]] != problem.capacity[problem.pool[b]]:
        return False
    moved = problem.transfer[:, swap][:, :, swap]
    return bool((moved == problem.transfer).all())


def _cut(problem: Problem, f: Flat, kinds: _Kinds, path: Small) -> float:
    """The least time for a path, over all ways to cut it into calls."""
    m = len(path)
    late, early = _between(f, path)
    group, alone = problem.same_device, np.full(problem.n_units, -1)
    costs = np.empty((len(kinds.target), m, m))
    for number, b in enumerate(kinds.target.tolist()):
        send = np.zeros(problem.n_units)
        out = problem.is_output & (problem.producer >= 0)
        np.add.at(send, problem.producer[out], problem.send[out, b])
        can = problem.allowed[:, b]
        single = bool(kinds.single[number])
        together = group if single else alone
        takes = _held(np.where(can, problem.time[:, b], 0) + send, late, early, together, m, single)
        weighs = _held(problem.weight_bytes[:, b].astype(np.float64), late, early, group, m, False)
        fits = weighs <= problem.capacity[problem.pool[b]] * (1 + SLACK)
        fits &= _held((~can).astype(np.float64), late, early, group, m, False) < 0.5
        costs[number] = np.where(fits, problem.call[b] + takes, np.inf)
        if single:
            costs[number] += _forced(f, problem.receive[:, b], problem.send[:, b], late, early, m)
    hand = np.zeros((m, len(kinds.target), len(kinds.target)))
    for at in range(1, m):
        read = f.reads[f.reads_at[path[at]] : f.reads_at[path[at] + 1]]
        for x in read[f.producer[read] == path[at - 1]]:
            np.maximum(hand[at], _handoff(problem, f, kinds, int(x)), out=hand[at])
    return float(_cheapest(costs, hand, kinds.counted, kinds.most))


def _handoff(problem: Problem, f: Flat, kinds: _Kinds, x: int) -> Floats:
    """float64[kinds, kinds]: the least time between two calls of a path; infinite where they cannot be."""
    found = np.zeros((len(kinds.target), len(kinds.target)))
    for at, a in enumerate(kinds.target.tolist()):
        for number, b in enumerate(kinds.target.tolist()):
            pays = f.charge != CHARGE_TARGET or bool(kinds.single[number])
            to = int(kinds.other[number]) if at == number else b
            is_beside = problem.overlap and problem.silicon[a] != problem.silicon[to]
            moved = problem.transfer[x, a, to] if pays or is_beside else 0.0
            if not kinds.single[number] and pays:
                moved += problem.receive[x, to]
            if not kinds.single[at] and not problem.is_output[x]:
                moved += problem.send[x, a]
            if at == number:
                again = problem.transfer[x, a, a] if f.charge != CHARGE_TARGET else 0.0
                if kinds.single[at]:
                    moved = moved if to != a else np.inf
                else:
                    moved = min(moved, again) if to != a else again
            found[at, number] = moved
    return found


@compiled
def _longest(f: Flat, length: Floats) -> Small:
    """The units of the longest path."""
    n = len(length)
    far, before = np.zeros(n), np.full(n, -1, np.int32)
    for unit in f.order:
        for at in range(f.reads_at[unit], f.reads_at[unit + 1]):
            maker = f.producer[f.reads[at]]
            if maker >= 0 and far[maker] > far[unit]:
                far[unit], before[unit] = far[maker], maker
        far[unit] += length[unit]
    path, size = np.empty(n, np.int32), 0
    unit = np.argmax(far)
    while unit >= 0:
        path[size] = unit
        size += 1
        unit = before[unit]
    return path[:size][::-1].copy()


@compiled
def _between(f: Flat, path: Small) -> tuple[Ints, Ints]:
    """For each unit the last unit of the path that leads to it, -1 for none, and the first it leads to."""
    n, m = len(f.order), len(path)
    late, early = np.full(n, -1, np.int64), np.full(n, m, np.int64)
    for at in range(m):
        late[path[at]] = early[path[at]] = at
    for unit in f.order:
        for at in range(f.reads_at[unit], f.reads_at[unit + 1]):
            maker = f.producer[f.reads[at]]
            if maker >= 0:
                late[unit] = max(late[unit], late[maker])
    for unit in f.order[::-1]:
        for at in range(f.reads_at[unit], f.reads_at[unit + 1]):
            maker = f.producer[f.reads[at]]
            if maker >= 0:
                early[maker] = min(early[maker], early[unit])
    return late, early


@compiled
def _sums(points: Floats) -> Floats:
    """At (i, j) the sum over points (a, e) with a >= i and e <= j."""
    m = len(points)
    for i in range(m - 2, -1, -1):
        points[i] += points[i + 1]
    for j in range(1, m):
        points[:, j] += points[:, j - 1]
    return points


@compiled
def _held(value: Floats, late: Ints, early: Ints, group: Ints, m: int, keeps_apart: bool) -> Floats:
    """float64[m, m]: the sum of a value over what a call holds that holds units i to j of the path.

    Units between i and j, and all units of a group of which one is between. Infinite where a group's unit
    comes after j + 1 or before i - 1, if ``keeps_apart``: the call could not run in one piece.
    """
    found = np.zeros((m, m))
    for unit in range(len(value)):
        if group[unit] < 0 and late[unit] >= 0 and early[unit] < m:
            found[late[unit], early[unit]] += value[unit]
    names = group.max() + 1
    total, last, first = np.zeros(names), np.full(names, -1), np.full(names, m)
    for unit in range(len(value)):
        g = group[unit]
        if g >= 0:
            total[g] += value[unit]
            last[g], first[g] = max(last[g], late[unit]), min(first[g], early[unit])
    # A group counts where i <= late and j >= early of one of its units: a staircase, added corner by corner.
    by_group = np.argsort(group)
    lowest = np.empty(m, np.int64)
    for at in range(len(by_group)):
        g = group[by_group[at]]
        if g < 0 or (at and group[by_group[at - 1]] == g):
            continue
        lowest[:] = m
        end = at
        while end < len(by_group) and group[by_group[end]] == g:
            unit = by_group[end]
            if late[unit] >= 0:
                lowest[late[unit]] = min(lowest[late[unit]], early[unit])
            end += 1
        reach = m
        for i in range(m - 1, -1, -1):
            if lowest[i] < reach:
                # From row i on the group counts from an earlier column on.
                found[i, lowest[i]] += total[g]
                if reach < m:
                    found[i, reach] -= total[g]
                reach = lowest[i]
    found = _sums(found)
    if keeps_apart:
        for unit in range(len(value)):
            g = group[unit]
            if g < 0 or late[unit] < 0 or early[unit] >= m:
                continue
            # With this unit inside, others of its group must not lie behind j or before i.
            for i in range(late[unit] + 1):
                for j in range(max(i, early[unit]), m):
                    if last[g] > j or first[g] < i:
                        found[i, j] = np.inf
    return found


@compiled
def _forced(f: Flat, receive: Floats, send: Floats, late: Ints, early: Ints, m: int) -> Floats:
    """float64[m, m]: what a call that holds units i to j of the path must receive and send.

    Tensors read between i and j whose maker leads to i - 1, and tensors made between whose reader comes
    behind j + 1: neither maker nor reader can be in the call, and the target has no other.
    """
    found = np.zeros((m, m))
    lowest = np.empty(m, np.int64)
    for x in range(len(f.producer)):
        maker = f.producer[x]
        if maker < 0:
            continue
        if receive[x] > 0 and early[maker] < m:
            lowest[:] = m
            for at in range(f.readers_at[x], f.readers_at[x + 1]):
                reader = f.readers[at]
                if late[reader] >= 0:
                    lowest[late[reader]] = min(lowest[late[reader]], early[reader])
            reach = m
            for i in range(m - 1, early[maker], -1):
                reach = min(reach, lowest[i])
                found[i, reach:] += receive[x]
        if send[x] > 0 and late[maker] >= 0 and early[maker] < m and not f.is_output[x]:
            behind = -1
            for at in range(f.readers_at[x], f.readers_at[x + 1]):
                behind = max(behind, late[f.readers[at]])
            if behind > early[maker]:
                found[: late[maker] + 1, early[maker] : behind] += send[x]
    return found


@compiled
def _cheapest(
    costs: Floats, hand: Floats, counted: np.ndarray[tuple[int], np.dtype[np.bool_]], most: int
) -> float:
    """The least sum of intervals and handoffs; see :func:`_cut`."""
    n_kinds, m = costs.shape[0], costs.shape[1]
    rows = most + 1 if counted.any() else 1
    done = np.full((m + 1, rows, n_kinds), np.inf)
    begin = np.full((rows, n_kinds), np.inf)
    for i in range(m):
        for used in range(rows):
            for b in range(n_kinds):
                least = np.inf
                if i == 0:
                    least = 0.0 if used == 0 else np.inf
                else:
                    for a in range(n_kinds):
                        least = min(least, done[i, used, a] + hand[i, a, b])
                begin[used, b] = least
        for b in range(n_kinds):
            step = 1 if counted[b] else 0
            for j in range(i, m):
                cost = costs[b, i, j]
                if cost == np.inf:
                    continue
                for used in range(rows - step):
                    value = begin[used, b] + cost
                    if value < done[j + 1, used + step, b]:
                        done[j + 1, used + step, b] = value
    return float(done[m].min())
