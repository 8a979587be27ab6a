"""A lower bound of latency and throughput with handoffs, in linear time per step: prices on a forest."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from hal.planning.bounds import simplex
from hal.planning.compiled import compiled
from hal.planning.contraction import Joined
from hal.planning.domains import Flags, by_group, domains, groups
from hal.planning.labelling import longest_path
from hal.planning.problem import Floats, Ints, Problem
from hal.planning.search import Best, Budget

#: Steps after which a bound that did not rise is left.
_PATIENCE = 60
#: Steps without a higher bound after which steps become shorter.
_SHORTEN = 8
#: Numbers in the table of handoffs up to which the bound is tried: building it takes about a second.
_MOST = 2_000_000


class Forest(NamedTuple):
    """Groups of units as vertices, and of the tensors between them so many that they form a forest.

    Attributes:
        time: float64[groups, t]: over the slots; with what is paid whatever the others' targets are.
        can: bool[groups, t].
        weight: float64[groups, t]: in shares of the pool's capacity.
        order: int64[groups]: each vertex before its parent.
        parent: int64[groups]; -1 for a root.
        is_maker: bool[groups]: whether the vertex makes what crosses to its parent, else it reads.
        send: float64[groups, t]: of what crosses between a vertex and its parent, over the slots.
        receive: float64[groups, t]: likewise.
        transfer: float64[groups, t, t]: likewise, from the maker's target to the reader's.
        slots: float64[t]; infinite where a silicon runs any number at once.
        silicon: int64[t].
        pool: int64[t].
        link: int64[t, t].
        overlap: As in the problem. So also below.
        send_port: Whether a silicon sends one tensor at a time.
        receive_port: Whether a silicon receives one at a time.
    """

    time: Floats
    can: Flags
    weight: Floats
    order: Ints
    parent: Ints
    is_maker: Flags
    send: Floats
    receive: Floats
    transfer: Floats
    slots: Floats
    silicon: Ints
    pool: Ints
    link: Ints
    overlap: bool
    send_port: bool
    receive_port: bool


def applies(problem: Problem) -> bool:
    """Latency and throughput, where handoffs cost something and their table fits into memory."""
    costs = problem.send.any() or problem.receive.any() or problem.transfer.any()
    is_small = problem.n_units * problem.n_targets**2 <= _MOST
    return bool(problem.objective in ("latency", "throughput") and costs and is_small)


def forest_bound(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Raise ``best.bound`` by the highest price-weighted cost of all loads that is found.

    Proof. The largest load C is at least any average of loads with weights p (of silicons, ports and links;
    not below 0, of sum 1), and latency is at least C. For prices m >= 0 of full pools, a plan that keeps the
    constraints has ``m * (weights / capacity - 1) <= 0``. So C is at least the minimum over all choices of
    targets of ``sum p load + sum m (weights / capacity - 1)``. Of the handoffs only some are counted: for
    each tensor one reader's (a tensor is handed at least once to a target that reads it, and sent at least
    once if a reader is elsewhere), and of those a set that forms a forest of groups; each costs 0 or more,
    so the minimum only falls. Calls are counted along one path: each change of target on it begins another
    partition. On a forest it is found exactly, from the leaves to the roots. The bound is
    computed anew from each step's prices, so it holds however good they are; on chains it is the linear
    program's.

    Source: Lagrangian relaxation with dynamic programming on a tree, as in M. Guignard and S. Kim,
    "Lagrangean decomposition", Mathematical Programming 39 (1987); steps by B. T. Polyak, "Minimization of
    unsmooth functionals" (1969).
    """
    if not applies(problem) or not domains(problem).any(axis=1).all():
        return
    forest = _forest(problem)
    n_silicons = problem.n_silicons
    usable = np.zeros(3 * n_silicons + int(problem.link.max()) + 1, np.bool_)
    usable[:n_silicons] = problem.slots > 0
    usable[n_silicons : 2 * n_silicons] = problem.overlap and problem.send_port
    usable[2 * n_silicons : 3 * n_silicons] = problem.overlap and problem.receive_port
    usable[3 * n_silicons :] = problem.overlap
    if not usable.any():
        return
    prices = np.zeros(len(usable))
    prices[:n_silicons] = usable[:n_silicons]
    prices = prices / prices.sum() if prices.any() else usable / usable.sum()
    limits = np.zeros(problem.n_pools)
    finite = np.isfinite(problem.capacity) & (problem.capacity > 0)
    reached, idle, length = 0.0, 0, 1.0
    kept = prices.copy(), limits.copy()
    while idle < _PATIENCE and not budget.is_spent and not best.is_optimal:
        value, loads, full = _lowest(forest, prices, limits)
        idle += 1
        if value > reached * (1 + 1e-5):
            idle = 0
        if value > reached:
            reached = value
            kept = prices.copy(), limits.copy()
            best.prove(reached, "prices of loads, links and memory on a forest")
        elif idle % _SHORTEN == 0:
            length /= 2
            prices, limits = kept[0].copy(), kept[1].copy()
            value, loads, full = _lowest(forest, prices, limits)
        goal = best.objective if np.isfinite(best.objective) else 2 * max(float(loads.max()), reached)
        slope = np.where(usable, loads - loads[usable].mean(), 0)
        over = np.where(finite, full - 1, 0)
        over[(limits <= 0) & (over < 0)] = 0
        # Prices of pools count in the objective's unit, those of loads are shares.
        norm = float((slope**2).sum() + (over * goal) @ (over * goal))
        if norm <= 0:
            break
        step = length * max(goal - value, 0.0) / norm
        prices = simplex(prices + step * slope, usable)
        limits = np.maximum(limits + step * goal * goal * over, 0)


def _forest(problem: Problem) -> Forest:
    group, can = groups(problem), domains(problem)
    count, t = int(group.max()) + 1, problem.n_targets
    slots = problem.slots[problem.silicon].astype(np.float64)
    slots[slots == 0] = np.inf
    time = by_group(group, np.where(problem.allowed, problem.time, 0))
    if problem.start == "unit":
        time += np.bincount(group)[:, None] * problem.call
    outputs = np.flatnonzero(problem.is_output & (problem.producer >= 0))
    np.add.at(time, group[problem.producer[outputs]], problem.send[outputs])
    if problem.charge == "edge" or (problem.charge == "partition" and problem.start == "unit"):
        outside = np.flatnonzero(problem.producer[problem.read_tensor] < 0)
        received = problem.receive[problem.read_tensor[outside]]
        np.add.at(time, group[problem.read_unit[outside]], received)
    allowed = np.zeros((count, t), np.bool_)
    allowed[group] = can
    source, sink, tensor = _crossings(problem, group)
    path = _path(problem, group)
    # The path of calls first, then dear handoffs: they make the bound.
    own = np.where(np.isfinite(slots), problem.receive + problem.send, 0).mean(axis=1)
    dear = problem.transfer.mean(axis=(1, 2)) + own
    joined = Joined(count)
    chosen: dict[tuple[int, int], list[int]] = {pair: [] for pair in itertools.pairwise(path)}
    joined.join(path)
    for at in np.argsort(-dear[tensor], kind="stable").tolist():
        a, b = int(source[at]), int(sink[at])
        if (a, b) in chosen:
            chosen[a, b].append(int(tensor[at]))
        elif joined.find(a) != joined.find(b):
            joined.join((a, b))
            chosen[a, b] = [int(tensor[at])]
    on_path = set(itertools.pairwise(path))
    if path:
        time[path[0]] += problem.call
    order, parent, edge = _rooted(count, list(chosen))
    send, receive, transfer = np.zeros((count, t)), np.zeros((count, t)), np.zeros((count, t, t))
    is_maker = np.zeros(count, np.bool_)
    for vertex, pair in enumerate(edge):
        if pair is not None:
            tensors = chosen[pair]
            is_maker[vertex] = pair[0] == vertex
            inner = [x for x in tensors if not problem.is_output[x]]
            send[vertex] = problem.send[inner].sum(axis=0) / slots
            receive[vertex] = problem.receive[tensors].sum(axis=0) / slots
            transfer[vertex] = problem.transfer[tensors].sum(axis=0)
            if pair in on_path:
                receive[vertex] += problem.call / slots
            if problem.start == "partition":
                transfer[vertex][np.arange(t), np.arange(t)] = 0
    capacity = np.where(problem.capacity > 0, problem.capacity, np.inf)[problem.pool]
    return Forest(
        time=time / slots,
        can=allowed,
        weight=by_group(group, problem.weight_bytes) / capacity,
        order=order,
        parent=parent,
        is_maker=is_maker,
        send=send,
        receive=receive,
        transfer=transfer,
        slots=slots,
        silicon=problem.silicon,
        pool=problem.pool,
        link=problem.link,
        overlap=problem.overlap,
        send_port=problem.send_port,
        receive_port=problem.receive_port,
    )


def _path(problem: Problem, group: Ints) -> list[int]:
    """Groups along a longest path where calls cost something; empty where it meets a group twice."""
    if problem.start == "unit" or not problem.call.any():
        return []
    path = group[longest_path(problem)].tolist()
    return path if len(set(path)) == len(path) else []


def _crossings(problem: Problem, group: Ints) -> tuple[Ints, Ints, Ints]:
    """Makers' and readers' groups and tensors, one reader for each tensor: the first of another group."""
    maker = problem.producer[problem.read_tensor]
    inner = np.flatnonzero(maker >= 0)
    source, sink = group[maker[inner]], group[problem.read_unit[inner]]
    apart = source != sink
    source, sink, tensor = source[apart], sink[apart], problem.read_tensor[inner][apart]
    _, first = np.unique(tensor, return_index=True)
    return source[first], sink[first], tensor[first]


def _rooted(count: int, pairs: list[tuple[int, int]]) -> tuple[Ints, Ints, list[tuple[int, int] | None]]:
    """Vertices with each before its parent; parents; the pair of each vertex and its parent."""
    around: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for pair in pairs:
        around[pair[0]].append(pair)
        around[pair[1]].append(pair)
    parent = np.full(count, -1, np.int64)
    edge: list[tuple[int, int] | None] = [None] * count
    seen = [False] * count
    found = []
    for root in range(count):
        if seen[root]:
            continue
        seen[root] = True
        stack = [root]
        while stack:
            vertex = stack.pop()
            found.append(vertex)
            for pair in around[vertex]:
                other = pair[0] if pair[1] == vertex else pair[1]
                if not seen[other]:
                    seen[other] = True
                    parent[other], edge[other] = vertex, pair
                    stack.append(other)
    return np.array(found[::-1], np.int64), parent, edge


@compiled
def _cross(f: Forest, prices: Floats, vertex: int, a: int, b: int) -> float:
    """What crossing from the maker's target a to the reader's target b costs at these prices."""
    n_silicons = (len(prices) - (f.link.max() + 1)) // 3
    c, s = f.silicon[a], f.silicon[b]
    long = f.transfer[vertex, a, b]
    if a == b:
        return float(prices[s] * long / f.slots[b])
    total = float(prices[c] * f.send[vertex, a] + prices[s] * f.receive[vertex, b])
    if c == s or not f.overlap:
        return total + float(prices[s] * long / f.slots[b])
    if f.send_port:
        total += prices[n_silicons + c] * long
    if f.receive_port:
        total += prices[2 * n_silicons + s] * long
    if f.link[a, b] >= 0:
        total += prices[3 * n_silicons + f.link[a, b]] * long
    return total


@compiled
def _lowest(f: Forest, prices: Floats, limits: Floats) -> tuple[float, Floats, Floats]:
    """The least cost at these prices; the loads and the shares of pools of the choice that has it."""
    count, t = f.time.shape
    n_silicons = (len(prices) - (f.link.max() + 1)) // 3
    cost = np.empty((count, t))
    choice = np.zeros((count, t), np.int64)
    for vertex in range(count):
        for b in range(t):
            cost[vertex, b] = np.inf
            if f.can[vertex, b]:
                cost[vertex, b] = (
                    prices[f.silicon[b]] * f.time[vertex, b] + limits[f.pool[b]] * f.weight[vertex, b]
                )
    target = np.zeros(count, np.int64)
    total = -limits.sum()
    for vertex in f.order:
        up = f.parent[vertex]
        if up < 0:
            target[vertex] = cost[vertex].argmin()
            total += cost[vertex, target[vertex]]
            continue
        for b in range(t):
            if not f.can[up, b]:
                continue
            least = np.inf
            for a in range(t):
                if f.can[vertex, a] and cost[vertex, a] < least:
                    if f.is_maker[vertex]:
                        value = cost[vertex, a] + _cross(f, prices, vertex, a, b)
                    else:
                        value = cost[vertex, a] + _cross(f, prices, vertex, b, a)
                    if value < least:
                        least = value
                        choice[vertex, b] = a
            cost[up, b] += least
    loads = np.zeros(len(prices))
    full = np.zeros(len(limits))
    for at in range(count - 1, -1, -1):
        vertex = f.order[at]
        up = f.parent[vertex]
        if up >= 0:
            target[vertex] = choice[vertex, target[up]]
        b = target[vertex]
        loads[f.silicon[b]] += f.time[vertex, b]
        full[f.pool[b]] += f.weight[vertex, b]
        if up < 0:
            continue
        a, b = (b, target[up]) if f.is_maker[vertex] else (target[up], b)
        c, s = f.silicon[a], f.silicon[b]
        long = f.transfer[vertex, a, b]
        if a == b:
            loads[s] += long / f.slots[b]
            continue
        loads[c] += f.send[vertex, a]
        loads[s] += f.receive[vertex, b]
        if c == s or not f.overlap:
            loads[s] += long / f.slots[b]
            continue
        if f.send_port:
            loads[n_silicons + c] += long
        if f.receive_port:
            loads[2 * n_silicons + s] += long
        if f.link[a, b] >= 0:
            loads[3 * n_silicons + f.link[a, b]] += long
    return total, loads, full
