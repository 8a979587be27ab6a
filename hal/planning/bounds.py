"""Lower bounds: what no plan that keeps the constraints can beat, each with its proof."""

from __future__ import annotations

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.domains import Flags, by_group, domains, groups, need
from hal.planning.flat import CHARGE_TARGET, Flat, flat
from hal.planning.partitions import dag
from hal.planning.problem import Floats, Ints, Problem
from hal.planning.search import Best, Budget

#: Steps of the price search; each costs one pass over units and targets.
_PRICE_STEPS = 60
#: Units up to which the memory that paths force is looked at: each needs its set of descendants.
_PATH_UNITS = 3_000


def prove(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Raise ``best.bound`` by the bounds of the problem's objective that take about linear time.

    The dearer one, :func:`hal.planning.loads_bound.loads_bound`, is a turn of its own in the portfolio.

    Infinite bounds (no unit can be placed) are not reported: :mod:`hal.planning.infeasible` says why.
    """
    if not domains(problem).any(axis=1).all():
        return
    if problem.objective == "energy":
        best.prove(least_energy(problem), "energy of each unit at its best")
    elif problem.objective == "memory":
        best.prove(weights(problem), "least weights and the largest unit")
        if problem.n_units <= _PATH_UNITS:
            best.prove(live(problem), "tensors that must live at once")
    else:
        if problem.objective == "latency":
            best.prove(critical_path(problem), "critical path at the best change of device")
        best.prove(largest_unit(problem), "largest unit")
        bound, is_forced = load(problem)
        best.prove(bound, "load that memory forces" if is_forced else "load")


def critical_path(problem: Problem) -> float:
    """The longest path, each unit and each handoff on it at the best choice of targets.

    Proof. Let L[u, b] be a lower bound of the time at which unit u on target b can be done, counting within
    its partition only what the partition must have done before: its call, what it receives for u, units that
    feed u, u. By induction over a topological order: a maker p on b is in the same partition (its time and
    u's add up) or in an earlier one (then u also waits for its end); a maker p on a other target a has to end
    with its sends, then the handoff and the call of u's partition lie between. Each maker's own target is
    chosen as is best for u alone, which can only lower the bound. With the charge ``target`` a later reader
    pays nothing itself; where the silicon runs one partition at a time it starts after the first reader,
    which paid; elsewhere only the arrival counts.

    Source: the critical path of list scheduling (H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective
    and low-complexity task scheduling for heterogeneous computing", IEEE TPDS 13 (2002), there with mean
    costs, which is no bound), with a dynamic program over targets as in its bound for unrelated machines.
    """
    return float(_critical(flat(problem), domains(problem), problem.same_device))


def largest_unit(problem: Problem) -> float:
    """The unit (or group) whose best target takes longest for it, over the slots.

    Proof. All units of a group are on one target b, whose silicon has at least their time over its slots to
    do; a partition's own time is no shorter than that of one of its units.
    """
    can, group = domains(problem), groups(problem)
    time = by_group(group, np.where(problem.allowed, problem.time, 0)) + _calls(problem, group)
    slots = problem.slots[problem.silicon].astype(np.float64)
    per_slot = np.divide(time, slots, out=np.zeros_like(time), where=slots > 0)
    found = np.where(can[_first(group)], per_slot, np.inf).min(axis=1).max()
    return float(found)


def load(problem: Problem) -> tuple[float, bool]:
    """The load of the busiest silicon when units may be cut in pieces, handoffs are free and memory is not.

    Proof. C is at least the load of each silicon, hence at least any average of the loads with weights p[s],
    ``sum p = 1``. For prices of memory m[pool] >= 0 and of error e >= 0, the weights and errors of a plan
    that keeps the constraints satisfy ``m * (weights - capacity) <= 0``, and adding such terms only lowers
    the sum. So ``C >= sum over groups of min over b of (p[silicon] time / slots + m[pool] weight + e error)
    - sum of m capacity - e max_error``, whatever the prices. They are found by subgradient steps, each linear
    in the problem's size; the bound is computed from the prices alone.

    Returns:
        The bound; whether prices of memory made it higher than it is without.

    Source: Lagrangian duality; for the linear program of unrelated machines J. K. Lenstra, D. B. Shmoys,
    E. Tardos, Mathematical Programming 46 (1990); for the steps B. T. Polyak, "Minimization of unsmooth
    functionals" (1969).
    """
    dual = _Dual(problem)
    plain = dual.improved(with_limits=False)
    if dual.has_limits:
        limited = dual.improved(with_limits=True)
        if limited > plain * (1 + 1e-9):
            return limited, True
    return plain, False


def least_energy(problem: Problem) -> float:
    """Each group on the target where it needs least.

    Proof. Energy adds up over units; sends, receives, handoffs and calls only add to it. Units that start
    alone pay their call wherever they are; otherwise at least one partition does, the cheapest.
    """
    can, group = domains(problem), groups(problem)
    each = by_group(group, problem.energy) + problem.power * _calls(problem, group)
    total = float(np.where(can[_first(group)], each, np.inf).min(axis=1).sum())
    if problem.start == "partition":
        total += float((problem.power * problem.call)[can.any(axis=0)].min())
    return total


def weights(problem: Problem) -> float:
    """The least weights of all groups, and what the unit that needs most holds beside them while it runs.

    Proof. Every unit's weights lie in some pool all the time, so the sum of the pools' highest uses is at
    least the sum of their weights and, at the moment a unit runs, what that unit holds. Where it is chosen
    apart from the weights' target the minimum of both together is taken.
    """
    can, group = domains(problem), groups(problem)
    own = np.where(can[_first(group)], by_group(group, problem.weight_bytes), np.inf)
    least = own.min(axis=1)
    extra = own - least[:, None]
    beside = np.where(can, need(problem) + extra[group], np.inf).min(axis=1)
    return float(least.sum() + beside.max())


def live(problem: Problem) -> float:
    """As :func:`weights`, with all tensors that lie across a unit.

    Proof. A tensor made by an ancestor of u, or by u, and read by u or a descendant lies in some pool from
    the start of its maker to the end of its last reader: the maker's pool keeps it until it has been handed
    on, and the reader's has it from the beginning of the handoff. That includes the moment u runs, if u
    takes time wherever it can be.
    """
    can, group = domains(problem), groups(problem)
    own = np.where(can[_first(group)], by_group(group, problem.weight_bytes), np.inf)
    least = own.min(axis=1)
    takes = np.where(can, problem.time, np.inf).min(axis=1) > 0
    graph = dag(problem)
    n = problem.n_units
    after: Flags = np.zeros((n, n), np.bool_)
    for unit in problem.order[::-1].tolist():
        after[unit, unit] = True
        for reader in graph.after[graph.after_at[unit] : graph.after_at[unit + 1]].tolist():
            after[unit] |= after[reader]
    crossing = np.zeros(n)
    by_tensor = np.argsort(problem.read_tensor, kind="stable")
    starts = np.searchsorted(problem.read_tensor[by_tensor], np.arange(problem.n_tensors + 1))
    for x in np.flatnonzero((problem.tensor_bytes > 0) & (problem.producer >= 0)):
        readers = problem.read_unit[by_tensor[starts[x] : starts[x + 1]]]
        maker = problem.producer[x]
        before_a_reader = np.asarray(after[:, readers].any(axis=1), np.bool_)
        before_a_reader[maker] = True
        crossing[after[maker] & before_a_reader] += problem.tensor_bytes[x]
    outside = np.flatnonzero(problem.producer[problem.read_tensor] < 0)
    size_of = problem.tensor_bytes[problem.read_tensor[outside]].astype(np.float64)
    crossing += np.bincount(problem.read_unit[outside], size_of, minlength=n)
    space = np.where(can, problem.workspace_bytes + own[group] - least[group][:, None], np.inf).min(axis=1)
    return float(least.sum() + np.where(takes, crossing + space, 0).max())


def _calls(problem: Problem, group: Ints) -> Floats:
    """float64[groups, t]: calls of units that start alone; 0 otherwise."""
    count = np.bincount(group)[:, None].astype(np.float64)
    return count * problem.call if problem.start == "unit" else np.zeros((len(count), problem.n_targets))


def _first(group: Ints) -> Ints:
    """int[groups]: the first unit of each."""
    return np.unique(group, return_index=True)[1].astype(np.int64)


class _Dual:
    """The Lagrangian of :func:`load`: prices of silicons, pools and the error budget."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        group = groups(problem)
        self.can = domains(problem)[_first(group)]
        time = by_group(group, np.where(problem.allowed, problem.time, 0)) + _calls(problem, group)
        slots = problem.slots[problem.silicon].astype(np.float64)
        self.time = np.divide(time, slots, out=np.zeros_like(time), where=slots > 0)
        self.pools = np.flatnonzero(np.isfinite(problem.capacity))
        self.weight = by_group(group, problem.weight_bytes)
        self.has_error = bool(np.isfinite(problem.max_error) and problem.error.any())
        self.error = by_group(group, problem.error)
        self.has_limits = self.has_error or bool(len(self.pools) and self.weight.any())
        # In shares of the limits, so that prices are comparable.
        self.share = np.where(np.isfinite(problem.capacity), 1 / np.maximum(problem.capacity, 1e-300), 0)[
            problem.pool
        ]
        self.error_share = 1 / problem.max_error if self.has_error and problem.max_error > 0 else 0.0
        self.busy = problem.slots > 0

    def value(self, silicon: Floats, pool: Floats, error: float) -> tuple[float, Ints]:
        """The bound for prices, and the target of each group that it was made with.

        Args:
            silicon: float64[s], at least 0, of sum 1.
            pool: float64[m], at least 0, per full pool.
            error: At least 0, per full budget.
        """
        problem = self.problem
        costs = self.time * silicon[problem.silicon]
        if pool.any():
            costs += self.weight * (pool[problem.pool] * self.share)
        if error:
            costs += self.error * (error * self.error_share)
        costs[~self.can] = np.inf
        chosen = costs.argmin(axis=1)
        return float(costs[np.arange(len(costs)), chosen].sum() - pool.sum() - error), chosen.astype(np.int64)

    def improved(self, with_limits: bool) -> float:
        """The best bound found by subgradient steps from even prices."""
        problem = self.problem
        if not self.busy.any():
            return 0.0
        silicon = self.busy / self.busy.sum()
        pool, error = np.zeros(problem.n_pools), 0.0
        best, target, wide = 0.0, 0.0, 0.3
        since = 0
        units = np.arange(len(self.time))
        for _ in range(_PRICE_STEPS):
            bound, chosen = self.value(silicon, pool, error)
            if bound > best * (1 + 1e-6):
                best, since = bound, 0
                kept = silicon.copy(), pool.copy(), error
            else:
                since += 1
                if since >= 5:
                    wide, since = wide / 2, 0
                    if best:
                        silicon, pool, error = kept[0].copy(), kept[1].copy(), kept[2]
                        bound, chosen = self.value(silicon, pool, error)
            loads = np.bincount(
                problem.silicon[chosen], self.time[units, chosen], minlength=problem.n_silicons
            )
            target = max(target, bound)
            slope = np.where(self.busy, loads - loads[self.busy].mean(), 0)
            used = np.zeros(problem.n_pools)
            over = 0.0
            if with_limits:
                full = np.bincount(
                    problem.pool[chosen], self.weight[units, chosen] * self.share[chosen], problem.n_pools
                )
                used[self.pools] = full[self.pools] - 1
                if self.error_share:
                    over = float(self.error[units, chosen].sum() * self.error_share - 1)
            norm = float((slope**2).sum() + (used**2).sum() * target**2 + over**2 * target**2)
            if norm <= 0:
                break
            # Prices of silicons are shares; prices of limits are in the bound's unit.
            step = wide * max(target, 1e-300) / np.sqrt(norm)
            length = max(float(np.abs(slope).max()), 1e-300)
            silicon = simplex(silicon + wide * slope / max(length, float(loads.max())), self.busy)
            pool = np.maximum(pool + step * used * target, 0)
            error = max(error + step * over * target, 0.0)
        return best


def simplex(values: Floats, usable: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Floats:
    """The nearest prices of sum 1, none below 0.

    Source: J. Duchi et al., "Efficient projections onto the l1-ball", ICML 2008.
    """
    inner = np.sort(values[usable])[::-1]
    excess = (np.cumsum(inner) - 1) / np.arange(1, len(inner) + 1)
    last = int(np.flatnonzero(inner > excess)[-1])
    found: Floats = np.where(usable, np.maximum(values - excess[last], 0), 0)
    found /= found.sum()
    return found


@compiled
def _critical(f: Flat, can: np.ndarray[tuple[int, int], np.dtype[np.bool_]], group: Ints) -> float:
    n, n_targets = f.time.shape
    done = np.full((n, n_targets), np.inf)
    longest = 0.0
    queued = f.send_port or f.receive_port or f.link.max() >= 0
    for unit in f.order:
        first, last = f.reads_at[unit], f.reads_at[unit + 1]
        soonest = np.inf
        for b in range(n_targets):
            if not can[unit, b]:
                continue
            s = f.silicon[b]
            # Whether what an earlier partition of the target received lies before this one.
            serial = f.charge != CHARGE_TARGET or f.slots[s] == 1
            start = f.call[b]
            for at in range(first, last):
                if f.producer[f.reads[at]] < 0 and serial:
                    start += f.receive[f.reads[at], b]
            at = first
            while at < last:
                maker = f.producer[f.reads[at]]
                behind = at + 1
                while behind < last and f.producer[f.reads[behind]] == maker:
                    behind += 1
                if maker >= 0:
                    # Tensors of one maker come from one target.
                    ready = np.inf
                    for a in range(n_targets):
                        if not can[maker, a] or (a != b and group[unit] >= 0 and group[unit] == group[maker]):
                            continue
                        between, longest_handoff = 0.0, 0.0
                        for place in range(at, behind):
                            x = f.reads[place]
                            if a == b:
                                if f.by_unit and f.charge != CHARGE_TARGET:
                                    between += f.transfer[x, b, b]
                                continue
                            between += f.send[x, a]
                            if serial:
                                between += f.receive[x, b]
                            if f.overlap and f.silicon[a] != s:
                                if queued and (f.send_port or f.receive_port or f.link[a, b] >= 0):
                                    longest_handoff += f.transfer[x, a, b]
                                else:
                                    longest_handoff = max(longest_handoff, f.transfer[x, a, b])
                            elif serial:
                                between += f.transfer[x, a, b]
                        if a != b or f.by_unit:
                            between += f.call[b]
                        ready = min(ready, done[maker, a] + between + longest_handoff)
                    start = max(start, ready)
                at = behind
            done[unit, b] = start + f.time[unit, b]
            end = done[unit, b]
            for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
                if f.is_output[f.made[at_made]]:
                    end += f.send[f.made[at_made], b]
            soonest = min(soonest, end)
        longest = max(longest, soonest)
    return longest
