"""Cutting one order of blocks into segments, one target each, so that the largest load is least.

Source: the dynamic program over one linear order of Tarnawski et al., "Efficient Algorithms for Device
Placement of DNN Graph Operators", NeurIPS 2020 (DPL), with a count of used targets per class of identical
ones (sets of targets where all differ), as in "Piper", NeurIPS 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.pipeline_model import Pipeline
from hal.planning.problem import Floats, Ints, Problem, Small


class Classes(NamedTuple):
    """Targets of a problem by class; those of a class are interchangeable.

    Attributes:
        members: Targets of each class.
        of: int64[t]: class of each target.
    """

    members: tuple[tuple[int, ...], ...]
    of: Ints


class Tolls(NamedTuple):
    """What tensors cost a target of a class whoever is at the other end, for compiled code.

    Attributes:
        enter: float64[v, k]: on the silicon, for a tensor of another target or from outside.
        leave: float64[v, k]: on the silicon, for a tensor that leaves.
        stay: float64[v, k]: on the silicon, for a tensor read where it is made.
        enter_port: float64[v, k]: on the port that receives.
        leave_port: float64[v, k]: on the port that sends.
        time: float64[n, k].
        call: float64[k].
        weight: float64[n, k].
        capacity: float64[k].
        copies: int64[k]: targets of each class.
    """

    enter: Floats
    leave: Floats
    stay: Floats
    enter_port: Floats
    leave_port: Floats
    time: Floats
    call: Floats
    weight: Floats
    capacity: Floats
    copies: Ints


def classes(problem: Problem) -> Classes:
    """Which targets are interchangeable: alone on their silicon and in their pool, and alike in all costs."""
    t = problem.n_targets
    alone = np.bincount(problem.pool)[problem.pool] == 1
    unlimited = np.isinf(problem.capacity[problem.pool])
    alone = (np.bincount(problem.silicon)[problem.silicon] == 1) & (alone | unlimited)
    members: list[list[int]] = []
    of = np.zeros(t, np.int64)
    for b in range(t):
        for number, known in enumerate(members):
            if alone[b] and alone[known[0]] and _alike(problem, known[0], b):
                known.append(b)
                of[b] = number
                break
        else:
            of[b] = len(members)
            members.append([b])
    return Classes(tuple(tuple(known) for known in members), of)


def _alike(problem: Problem, a: int, b: int) -> bool:
    for value in (
        problem.time,
        problem.weight_bytes,
        problem.workspace_bytes,
        problem.error,
        problem.energy,
        problem.send,
        problem.receive,
    ):
        if not np.array_equal(value[:, a], value[:, b]):
            return False
    per_target = (
        problem.call,
        problem.power,
        problem.partitions_per_target,
        problem.slots[problem.silicon],
        problem.capacity[problem.pool],
    )
    if any(value[a] != value[b] for value in per_target):
        return False
    swapped = np.arange(problem.n_targets)
    swapped[a], swapped[b] = b, a
    if (problem.link >= 0).any() and not np.array_equal(problem.link, problem.link[np.ix_(swapped, swapped)]):
        return False
    moved = problem.transfer
    return bool(
        np.array_equal(moved[:, a, swapped], moved[:, b, :])
        and np.array_equal(moved[:, swapped, a], moved[:, :, b])
    )


def tolls(p: Pipeline, found: Classes, *, least: bool) -> Tolls:
    """Costs by class, with the cheapest other end (``least``, for bounds) or the average one."""
    t, k = p.time.shape[1], len(found.members)
    heads = np.array([known[0] for known in found.members])
    v = len(p.owner)
    come, go = np.zeros((v, k)), np.zeros((v, k))
    if t > 1 and p.transfer.any():
        for number, b in enumerate(heads):
            others = np.delete(np.arange(t), b)
            pick = np.min if least else np.mean
            come[:, number] = pick(p.transfer[:, others, b], axis=1)
            go[:, number] = pick(p.transfer[:, b, others], axis=1)
    come[p.owner < 0] = 0.0
    slots = p.slots[p.silicon[heads]]
    beside = np.zeros((v, k))
    return Tolls(
        enter=p.receive[:, heads] / slots + (0.0 if p.overlap else come / slots),
        leave=p.send[:, heads] / slots,
        stay=p.transfer[:, heads, heads] / slots if p.within else beside,
        enter_port=come if p.overlap and p.receive_port else beside,
        leave_port=go if p.overlap and p.send_port else beside,
        time=np.ascontiguousarray(p.time[:, heads]),
        call=p.call[heads],
        weight=np.ascontiguousarray(p.weight[:, heads]),
        capacity=p.capacity[p.pool[heads]],
        copies=np.array([len(known) for known in found.members]),
    )


@compiled
def add_tensor(
    p: Pipeline, c: Tolls, x: int, inside: bool, m: int, total: int, sign: float, loads: Floats
) -> None:
    """Add to ``loads[3, k]`` what tensor x costs a segment that makes it (inside) and has m of its reads."""
    for k in range(len(c.copies)):
        if inside:
            if m < total or p.is_output[x]:
                loads[0, k] += sign * c.leave[x, k]
                if m < total:
                    loads[2, k] += sign * c.leave_port[x, k]
            if p.within and m > 0:
                loads[0, k] += sign * c.stay[x, k] * (m if p.per_read else 1)
        elif m > 0:
            factor = sign * (m if p.per_read else 1)
            loads[0, k] += factor * c.enter[x, k]
            loads[1, k] += factor * c.enter_port[x, k]


@compiled
def cut(p: Pipeline, c: Tolls, order: Small, may_cut: Small, limit: float, most: int) -> tuple[float, Small]:
    """Best segments of an order.

    Args:
        p: The pipeline.
        c: Costs by class.
        order: int32[n]: blocks.
        may_cut: int32[n + 1]: whether a segment may begin there.
        limit: Only values below it are of interest.
        most: Highest number of segments; 0 for any.

    Returns:
        The largest load, infinite where nothing is below the limit; and int32[2, n]: class and segment of
        each block.
    """
    n, n_classes = len(order), len(c.copies)
    strides = np.ones(n_classes + 1, np.int64)
    for k in range(n_classes):
        strides[k + 1] = strides[k] * (c.copies[k] + 1)
    n_states = strides[n_classes]
    place = np.empty(n, np.int32)
    for at in range(n):
        place[order[at]] = at
    total = np.zeros(len(p.owner), np.int32)
    for x in range(len(p.owner)):
        for at in range(p.readers_at[x], p.readers_at[x + 1]):
            total[x] += p.times[at]
    digits, used = np.empty((n_states, n_classes), np.int64), np.zeros(n_states, np.int64)
    for state in range(n_states):
        for k in range(n_classes):
            digits[state, k] = state // strides[k] % (c.copies[k] + 1)
            used[state] += digits[state, k]
    value = np.full((n + 1, n_states), np.inf)
    before = np.full((n + 1, n_states), -1, np.int32)
    by = np.full((n + 1, n_states), -1, np.int8)
    value[0, 0] = 0.0
    stamp, reads_in = np.full(len(p.owner), -1, np.int32), np.zeros(len(p.owner), np.int32)
    loads, weight = np.zeros((3, n_classes)), np.zeros(n_classes)
    live = np.empty(n_states, np.int64)
    computing = np.zeros(n_classes)
    for i in range(n):
        if may_cut[i] == 0:
            continue
        n_live = 0
        for state in range(n_states):
            if value[i, state] < limit and (most == 0 or used[state] < most):
                live[n_live] = state
                n_live += 1
        if n_live == 0:
            continue
        loads[:, :] = 0.0
        loads[0, :] = c.call
        computing[:] = c.call
        weight[:] = 0.0
        for j in range(i, n):
            u = order[j]
            is_open = False
            for k in range(n_classes):
                computing[k] += c.time[u, k]
                loads[0, k] += c.time[u, k]
                weight[k] += c.weight[u, k]
                if computing[k] < limit and weight[k] <= c.capacity[k]:
                    is_open = True
            if not is_open:
                break
            for at in range(p.reads_at[u], p.reads_at[u + 1]):
                x = p.reads[at]
                if stamp[x] != i:
                    stamp[x], reads_in[x] = i, 0
                maker = p.owner[x]
                if maker == u:
                    continue
                inside = maker >= 0 and i <= place[maker] < j
                add_tensor(p, c, x, inside, reads_in[x], total[x], -1.0, loads)
                reads_in[x] += p.reads_times[at]
                add_tensor(p, c, x, inside, reads_in[x], total[x], 1.0, loads)
            for at in range(p.owned_at[u], p.owned_at[u + 1]):
                x = p.owned[at]
                if stamp[x] != i:
                    stamp[x], reads_in[x] = i, 0
                add_tensor(p, c, x, False, reads_in[x], total[x], -1.0, loads)
                for near in range(p.readers_at[x], p.readers_at[x + 1]):
                    if p.readers[near] == u:
                        reads_in[x] += p.times[near]
                add_tensor(p, c, x, True, reads_in[x], total[x], 1.0, loads)
            if may_cut[j + 1] == 0:
                continue
            for k in range(n_classes):
                load = max(loads[0, k], loads[1, k], loads[2, k])
                # Not a number where infinite times met; then no segment of this class.
                if not (load < limit and weight[k] <= c.capacity[k]):
                    continue
                for number in range(n_live):
                    state = live[number]
                    if digits[state, k] == c.copies[k]:
                        continue
                    worth = max(value[i, state], load)
                    after = state + strides[k]
                    if worth < value[j + 1, after]:
                        value[j + 1, after] = worth
                        before[j + 1, after] = i
                        by[j + 1, after] = k
    found = np.full((2, n), -1, np.int32)
    best = 0
    for state in range(n_states):
        if value[n, state] < value[n, best]:
            best = state
    if not value[n, best] < limit:
        return np.inf, found
    at, state = n, best
    segment = used[best]
    while at > 0:
        k = by[at, state]
        segment -= 1
        begin = before[at, state]
        for j in range(begin, at):
            found[0, order[j]], found[1, order[j]] = k, segment
        state -= strides[k]
        at = begin
    return value[n, best], found
