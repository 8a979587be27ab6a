"""Local search over targets where costs add up: energy, and what one silicon does one thing after another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.domains import Flags, by_group, domains, groups
from hal.planning.flat import Flat, flat
from hal.planning.milp_additive import is_serial, offer, weights_of
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget

#: Moves between two looks at the clock: milliseconds.
_SLICE = 20_000
#: First and last temperature, in shares of the mean cost of a unit.
_HOT, _COLD = 0.3, 1e-4
#: Slices from hot to cold; then again, from the best.
_COOLING = 60


class Costs(NamedTuple):
    """What plans pay, for compiled code.

    Attributes:
        unit: float64[groups, t]: of each group itself, calls included.
        second: float64[t]: of one unit of time of a target.
        can: bool[groups, t].
        weight: float64[groups, t].
        error: float64[groups, t].
        pool: int64[t].
        capacity: float64[m].
        max_error: As in the problem.
        each_pays: Whether each reading unit is charged, else once for each target.
        members_at: int64[groups + 1]; units of group g are ``members[members_at[g]:members_at[g + 1]]``.
        members: int64[n].
    """

    unit: Floats
    second: Floats
    can: Flags
    weight: Floats
    error: Floats
    pool: Ints
    capacity: Floats
    max_error: float
    each_pays: bool
    members_at: Ints
    members: Ints


def applies(problem: Problem) -> bool:
    """Energy, and latency and throughput on one silicon that runs one partition at a time."""
    return problem.objective == "energy" or (is_serial(problem) and problem.objective != "memory")


def additive_local(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Simulated annealing of the targets of groups, from the best plan so far, in about linear time.

    A move puts a group on the target of a neighbour, or on any; the change of cost is that of the group and
    of the tensors it reads and makes. With ``start="partition"`` each target counts as one partition, which
    can be too little. Weights and errors never pass their limits.

    Source: S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, "Optimization by Simulated Annealing", Science 220
    (1983).
    """
    if not applies(problem) or not domains(problem).any(axis=1).all():
        return
    costs = _costs(problem)
    group = groups(problem)
    first = costs.members[costs.members_at[:-1]]
    if best.proposal is not None:
        target = best.proposal.assignment.target.astype(np.int32)
    else:
        target = np.where(costs.can, costs.unit, np.inf).argmin(axis=1).astype(np.int32)[group]
    mean = float(np.where(costs.can, costs.unit, 0).sum() / max(costs.can.sum(), 1)) or 1.0
    random = np.random.default_rng(seed)
    f = flat(problem)
    known = target.copy()
    number = 0
    while not budget.is_spent and not best.is_optimal:
        share = (number % _COOLING) / (_COOLING - 1)
        heat = mean * _HOT * (_COLD / _HOT) ** share
        moves = max(_SLICE, len(first))
        _anneal(f, costs, target, heat, int(random.integers(1 << 31)), moves)
        number += 1
        if number % _COOLING == 0 or budget.is_spent:
            if (target[first] != known[first]).any():
                known = target.copy()
                offer(best, known, "additive_local")
            if number % _COOLING == 0 and best.proposal is not None:
                target = best.proposal.assignment.target.astype(np.int32)


def _costs(problem: Problem) -> Costs:
    group = groups(problem)
    weights = weights_of(problem)
    unit = by_group(group, np.where(problem.allowed, weights.unit, 0))
    if problem.start == "unit":
        unit += np.bincount(group)[:, None] * (problem.call * weights.second)
    count = len(unit)
    can: Flags = np.zeros(unit.shape, np.bool_)
    can[group] = domains(problem)
    return Costs(
        unit=unit,
        second=weights.second.astype(np.float64),
        can=can,
        weight=by_group(group, problem.weight_bytes),
        error=by_group(group, problem.error),
        pool=problem.pool,
        capacity=problem.capacity,
        max_error=problem.max_error,
        each_pays=problem.charge == "edge" or (problem.start == "unit" and problem.charge != "target"),
        members_at=np.concatenate([[0], np.cumsum(np.bincount(group, minlength=count))]).astype(np.int64),
        members=np.argsort(group, kind="stable").astype(np.int64),
    )


@compiled
def _tensor(f: Flat, c: Costs, target: Small, x: int) -> float:
    """What the sending and all handoffs of a tensor cost."""
    maker = f.producer[x]
    a = target[maker] if maker >= 0 else -1
    total, is_wanted = 0.0, f.is_output[x]
    first, last = f.readers_at[x], f.readers_at[x + 1]
    for at in range(first, last):
        b = target[f.readers[at]]
        is_wanted = is_wanted or b != a
        if not c.each_pays:
            is_first = True
            for before in range(first, at):
                if target[f.readers[before]] == b:
                    is_first = False
                    break
            if not is_first:
                continue
        if maker < 0:
            total += c.second[b] * f.receive[x, b]
        elif a != b:
            total += c.second[b] * (f.receive[x, b] + f.transfer[x, a, b])
        elif f.by_unit:
            total += c.second[b] * f.transfer[x, b, b]
    if maker >= 0 and is_wanted:
        total += c.second[a] * f.send[x, a]
    return total


@compiled
def _around(f: Flat, c: Costs, target: Small, g: int, seen: Ints, mark: int) -> float:
    """What the tensors that a group reads or makes cost, each once."""
    total = 0.0
    for at in range(c.members_at[g], c.members_at[g + 1]):
        unit = c.members[at]
        for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
            x = f.reads[at_read]
            if seen[x] != mark:
                seen[x] = mark
                total += _tensor(f, c, target, x)
        for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
            x = f.made[at_made]
            if seen[x] != mark:
                seen[x] = mark
                total += _tensor(f, c, target, x)
    return total


@compiled
def _anneal(f: Flat, c: Costs, target: Small, heat: float, seed: int, n_moves: int) -> float:
    """Move groups at one temperature; changes ``target`` and returns the change of cost."""
    np.random.seed(seed)
    count, n_targets = c.unit.shape
    used = np.zeros(len(c.capacity))
    error = 0.0
    for g in range(count):
        b = target[c.members[c.members_at[g]]]
        used[c.pool[b]] += c.weight[g, b]
        error += c.error[g, b]
    seen = np.full(len(f.producer), -1, np.int64)
    change = 0.0
    for move in range(n_moves):
        g = np.random.randint(count)
        unit = c.members[c.members_at[g] + np.random.randint(c.members_at[g + 1] - c.members_at[g])]
        a = target[unit]
        b = np.random.randint(n_targets)
        if np.random.random() < 0.7:
            # The target of a unit that feeds this one or reads from it.
            n_reads, n_made = f.reads_at[unit + 1] - f.reads_at[unit], f.made_at[unit + 1] - f.made_at[unit]
            if n_reads and (n_made == 0 or np.random.random() < 0.5):
                maker = f.producer[f.reads[f.reads_at[unit] + np.random.randint(n_reads)]]
                b = target[maker] if maker >= 0 else b
            elif n_made:
                x = f.made[f.made_at[unit] + np.random.randint(n_made)]
                n_readers = f.readers_at[x + 1] - f.readers_at[x]
                if n_readers:
                    b = target[f.readers[f.readers_at[x] + np.random.randint(n_readers)]]
        if a == b or not c.can[g, b]:
            continue
        full = used[c.pool[b]] + c.weight[g, b] - (c.weight[g, a] if c.pool[a] == c.pool[b] else 0)
        if full > c.capacity[c.pool[b]] or error + c.error[g, b] - c.error[g, a] > c.max_error:
            continue
        before = c.unit[g, a] + _around(f, c, target, g, seen, 2 * move)
        for at in range(c.members_at[g], c.members_at[g + 1]):
            target[c.members[at]] = b
        after = c.unit[g, b] + _around(f, c, target, g, seen, 2 * move + 1)
        if after <= before or np.random.random() < np.exp((before - after) / heat):
            used[c.pool[a]] -= c.weight[g, a]
            used[c.pool[b]] += c.weight[g, b]
            error += c.error[g, b] - c.error[g, a]
            change += after - before
        else:
            for at in range(c.members_at[g], c.members_at[g + 1]):
                target[c.members[at]] = a
    return change
