"""Plans whose objective is a sum: dynamic programming over the open partitions along a topological order."""

from __future__ import annotations

import numpy as np

from hal.planning.call_moves import number
from hal.planning.flat import flat
from hal.planning.orders import Lanes, is_source, lanes, narrow, upward
from hal.planning.problem import OUTSIDE, Assignment, Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget
from hal.planning.serial_moves import MOST_TARGETS, Costs, replay, sweep, width
from hal.planning.violations import SLACK

#: An order that places the units without inputs first can be proven; worth this many more tensors alive.
_MORE_LANES = 4
#: States of the first sweep; by how much each next one has more, and about how much longer it takes.
_FIRST_STATES, _GROWTH, _DEARER = 16, 4, 3
#: Pairs of a unit and a target that a state of the first sweep may cost, so that it ends in seconds.
_PAIRS = 3_200_000
#: States of the last sweep where nothing can be proven, and the share of the time that is worth.
_START_STATES, _START_SHARE = 64, 0.1
#: Seconds for each number of each state that is tried, about: a sweep cannot be interrupted, and is not begun
#: where it would take longer than there is. Source: 10,000 units and 4 targets on one core of this project's
#: machine; graphs with fewer partitions open take less.
_STEP_S = 5e-8
#: States that take about a gigabyte.
_MOST_STATES = 1 << 17
#: Sweeps that look for the price of a limit.
_MOST_PRICES = 24
_NAME = "serial"
_PROOF = "dynamic programming over open partitions"


def applies(problem: Problem) -> bool:
    """Whether units share calls and the objective is, or is at most, a sum over units, calls and handoffs."""
    is_for = problem.objective == "latency" or _is_sum(problem)
    return problem.start == "partition" and problem.n_targets <= MOST_TARGETS and is_for


def _is_sum(problem: Problem) -> bool:
    if problem.objective == "energy":
        return True
    if problem.n_silicons > 1:
        return False
    slots = int(problem.slots[0])
    return (problem.objective == "throughput" and slots > 0) or (
        problem.objective == "latency" and slots == 1
    )


def serial(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """The cheapest plan as a sum, exact where few tensors are alive at once.

    Units are placed one after the other in a topological order with few tensors alive. A state is the open
    partitions (their targets, and which must come before which), the partition of each tensor that has
    readers left, and who was charged for it. States that agree in that are one; states that are worse than
    the best by more than it costs to change over are dropped; both keep the optimum. What is left may be too
    much: then the cheapest states go on, and the bound is what the dropped ones could have reached. Sweeps
    with more and more states follow, as time allows.

    Limits on memory, error and the number of partitions are priced into the units and calls, and the price is
    found by bisection: the bound stays valid, the plan may be a little dearer than it needs to be.

    Applies to energy, and to latency and throughput where all targets share one silicon. To latency on
    several it gives the plan with the smallest sum of all times, and proves nothing.

    Source: Bellman, "Dynamic Programming", 1957; prices for limits: Everett, "Generalized Lagrange Multiplier
    Method for Solving Problems of Optimum Allocation of Resources", Operations Research 11, 1963.

    Args:
        problem: The problem.
        best: Takes plans and bounds.
        budget: Time.
        seed: Not used; nothing is random.
    """
    if not applies(problem):
        return
    sweeps = _Sweeps(problem, best, _is_sum(problem))
    if not sweeps.proves:
        budget = budget.part(_START_SHARE * budget.left)
    most = max(4, min(_FIRST_STATES, _PAIRS // problem.time.size))
    if not sweeps.proves:
        most = min(most, int(budget.left / (_STEP_S * problem.time.size * width(sweeps.lanes))))
        if most < 1:
            return
    while not budget.is_spent:
        before = budget.left
        is_all = sweeps.solve(most, budget)
        if is_all or best.is_optimal or (before - budget.left) * _DEARER > budget.left:
            return
        most *= _GROWTH
        if most > (_MOST_STATES if sweeps.proves else _START_STATES):
            return


class _Sweeps:
    """A problem laid out for sweeps, and the price that its limits had last."""

    def __init__(self, problem: Problem, best: Best, proves: bool) -> None:
        self.problem, self.best, self.proves = problem, best, proves
        self.f = flat(problem)
        self.costs = _costs(problem)
        counts = np.bincount(problem.read_tensor, minlength=problem.n_tensors)
        pays = problem.receive.max(axis=1, initial=0) > 0
        outside = (counts > 1) & pays & (problem.charge != "edge")
        tracked = np.where(problem.producer != OUTSIDE, counts > 0, outside).astype(np.int32)
        late, early = (
            lanes(self.f, narrow(self.f, first), problem.same_device, tracked) for first in (False, True)
        )
        self.lanes: Lanes = early if early.n_lanes <= late.n_lanes + _MORE_LANES else late
        self.dear = _dear(problem, self.costs.rate, counts)
        sources = [at for at, unit in enumerate(self.lanes.order) if is_source(self.f, unit)]
        self.last_source = max(sources, default=0)
        counted = [problem.max_partitions, *problem.partitions_per_target]
        limits = [*problem.capacity, problem.max_error, *(count or np.inf for count in counted)]
        #: Of pools, error, partitions, partitions of each target; no unit uses any of a limit of 0.
        self.limits: Floats = np.array([limit or np.inf for limit in limits])
        self.price = 0.0
        self.active: tuple[Floats, Floats, float] | None = None

    def solve(self, most: int, budget: Budget) -> bool:
        """Offer the best plan of at most so many states; whether more states would change nothing."""
        is_all, assignment = self._sweep(most, 0.0)
        if assignment is None or (self._usage(assignment) <= 1 + SLACK).all():
            return is_all
        if self.active is None:
            self._activate(assignment)
        low, high, is_found = 0.0, self.price or 0.1 * float(self.costs.unit.min(axis=1).sum()), False
        for _ in range(_MOST_PRICES):
            if budget.is_spent or (is_found and high - low < 1e-3 * high):
                break
            price = 0.5 * (low + high) if is_found else high
            _, assignment = self._sweep(most, price)
            if assignment is not None and (self._usage(assignment) <= 1 + SLACK).all():
                high, is_found = price, True
            elif is_found:
                low = price
            else:
                low, high = high, 4 * high
        self.price = high
        return is_all

    def _sweep(self, most: int, price: float) -> tuple[bool, Assignment | None]:
        costs, limit = self.costs, 0.0
        if price and self.active is not None:
            units, calls, limit = self.active
            costs = Costs(costs.unit + price * units, costs.call + price * calls, costs.rate)
        rest = np.concatenate([np.cumsum(costs.unit.min(axis=1)[self.lanes.order][::-1])[::-1], [0.0]])
        # The best plan so far, at the price of the limits that it keeps.
        upper = (self.best.objective + price * limit) * (1 + SLACK) if self.proves else np.inf
        value, lower, target, joined, is_all = sweep(
            self.f, costs, self.lanes, self.dear, rest, most, self.last_source, upper
        )
        if self.proves:
            self.best.prove(lower - price * limit, _PROOF)
        if not np.isfinite(value):
            return is_all, None
        group = replay(self.f, costs, self.lanes, target, joined)
        placed = np.empty(self.problem.n_units, np.int32)
        placed[self.lanes.order] = target
        assignment = numbered(self.problem, placed, group)
        self.best.offer(assignment, _NAME)
        return is_all, assignment

    def _usage(self, assignment: Assignment) -> Floats:
        """Use of each limit as a share of it: pools, error, partitions, partitions of each target."""
        problem, target = self.problem, assignment.target
        units = np.arange(problem.n_units)
        weights = np.bincount(
            problem.pool[target], problem.weight_bytes[units, target], minlength=problem.n_pools
        )
        _, first = np.unique(assignment.partition, return_index=True)
        of_target = np.bincount(target[first], minlength=problem.n_targets)
        limits = self.limits
        return (
            np.concatenate(
                [weights, [problem.error[units, target].sum(), assignment.n_partitions], of_target]
            )
            / limits
        )

    def _activate(self, assignment: Assignment) -> None:
        """Price the limits that a plan breaks: what each unit and call uses, as shares, and how many."""
        problem = self.problem
        broken = self._usage(assignment) > 1 + SLACK
        m, limits = problem.n_pools, self.limits
        units = np.zeros(problem.time.shape)
        for at in np.flatnonzero(broken[:m]):
            units += np.where(problem.pool == at, problem.weight_bytes, 0) / limits[at]
        if broken[m]:
            units += problem.error / limits[m]
        calls = np.where(broken[m + 2 :], 1 / limits[m + 2 :], 0.0)
        if broken[m + 1]:
            calls += 1 / limits[m + 1]
        self.active = units, calls, float(broken.sum())


def numbered(problem: Problem, target: Small, group: Small) -> Assignment:
    """An assignment of groups of units; groups that cannot run in one piece are split."""
    partition = np.empty(problem.n_units, np.int32)
    free = np.zeros(problem.n_targets, np.int64)
    number(flat(problem), target, group, upward(flat(problem)), free, partition)
    return Assignment(target, partition)


def _costs(problem: Problem) -> Costs:
    energy = problem.objective == "energy"
    rate = problem.power.copy() if energy else np.ones(problem.n_targets)
    if problem.objective == "throughput":
        rate /= int(problem.slots[0])
    unit = problem.energy.copy() if energy else problem.time * rate
    unit[~problem.allowed | (problem.error > problem.max_error * (1 + SLACK))] = np.inf
    return Costs(unit, problem.call * rate, rate)


def _dear(problem: Problem, rate: Floats, counts: Ints) -> Floats:
    """float64[v]: what it costs at most to hand a tensor to all its readers."""
    entering = (problem.transfer + problem.receive[:, None, :]) * rate
    times = np.minimum(counts, problem.n_targets) if problem.charge == "target" else counts
    found: Floats = (problem.send * rate).max(axis=1, initial=0) + times * entering.max(
        axis=(1, 2), initial=0
    )
    return found
