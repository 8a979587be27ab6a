"""Local search over partitions: how many calls, what they hand over, and what runs beside what."""

from __future__ import annotations

import numpy as np

from hal.planning.call_moves import Rules, anneal
from hal.planning.check import check
from hal.planning.domains import domains, groups
from hal.planning.flat import flat
from hal.planning.orders import narrow, upward
from hal.planning.partitions import partitioned
from hal.planning.problem import Assignment, Floats, Problem, Small
from hal.planning.search import Best, Budget

_NAME = "calls"
#: In the order of the values of :func:`~hal.planning.evaluate.walk`.
_OBJECTIVES = ("latency", "throughput", "energy")
#: Annealing runs that share a budget, at most, and steps for each unit in each where there are several.
_ROUNDS, _LONG = 8, 500
#: Temperatures that runs begin with, over the share of one unit in the objective, by the steps for each unit
#: that a run has at least; they take turns with a third and the threefold. Fewer steps cannot cool more.
_HOT = ((1000.0, 10.0), (200.0, 3.0), (50.0, 0.5), (10.0, 0.3), (0.0, 0.03))
_TURNS = (1.0, 0.3, 3.0)
#: Last temperature over the first.
_COOLING = 1e-3
#: Unit evaluations of the run that tells how long one takes.
_TRIAL = 100_000


def applies(problem: Problem) -> bool:
    """Whether units share calls and the objective is latency, throughput or energy."""
    return problem.start == "partition" and problem.objective in _OBJECTIVES


def calls(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Simulated annealing over targets and partitions, from the best plan so far.

    A move takes a unit (with those that must share its device), what comes before or after it in its
    partition, an interval of a topological order, or a partition, and puts it into a partition next to it,
    into one of another target, or makes it one. A partition that cannot run in one piece any more is split.
    An evaluation takes some microseconds for hundreds of units. No move passes a limit of memory (of
    weights), error or number by more than the state before. Activations are looked at when a plan is offered;
    where they do not fit, weights get less room.

    Applies to latency, throughput and energy with ``start="partition"``.

    Source: Kirkpatrick, Gelatt, Vecchi, "Optimization by Simulated Annealing", Science 220, 1983; calls as in
    Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020.

    Args:
        problem: The problem.
        best: Takes plans.
        budget: Time.
        seed: Of the random numbers; the same seed and numbers of steps give the same plans.
    """
    if not applies(problem):
        return
    rules = rules_of(problem)
    scratch = _scratch(problem, rules)
    steps, cost_s = max(8, _TRIAL // problem.n_units), 0.0
    length_s = 0.0
    number = 0
    while not budget.is_spent and not best.is_optimal:
        start = best.proposal.assignment if best.proposal is not None else scratch
        # Where some units cost no call of their own, the plan without any call is another good start.
        if rules.alone.any() and number % 3 != 2:
            start = scratch
        target, group = start.target.copy(), _alone(rules, start)
        found_target, found_group = target.copy(), group.copy()
        if cost_s:
            length_s = length_s or budget.left / min(
                max(budget.left / cost_s / (_LONG * problem.n_units), 1), _ROUNDS
            )
            steps = max(8, int(min(length_s, budget.left) / cost_s))
        scale = best.objective if np.isfinite(best.objective) else float(problem.time.min(axis=1).sum())
        hot = next(heat for least, heat in _HOT if steps / problem.n_units >= least)
        hot = max(hot * _TURNS[number % len(_TURNS)] * scale / problem.n_units, 1e-300)
        before = budget.left
        value, _, _ = anneal(
            flat(problem),
            rules,
            target,
            group,
            found_target,
            found_group,
            hot,
            hot * _COOLING,
            steps,
            seed + number,
        )
        cost_s = max((before - budget.left) / steps, 1e-8)
        if np.isfinite(value):
            _offer(problem, rules, best, Assignment(found_target, found_group))
        number += 1


def _offer(problem: Problem, rules: Rules, best: Best, plan: Assignment) -> None:
    """Offer a plan; where it does not fit, make room."""
    if np.isfinite(best.offer(plan, _NAME)) or best.rejected is None:
        return
    over = np.clip(best.rejected.peaks - problem.capacity, 0, None)
    rules.limits[:-1] -= np.where(np.isfinite(over), over, 0)
    np.clip(rules.limits, 0, None, out=rules.limits)


def _alone(rules: Rules, plan: Assignment) -> Small:
    """int32[n]: the partitions of a plan, those of units that cost no call cut into units."""
    group = plan.partition.copy()
    single = np.flatnonzero(rules.alone[plan.target])
    group[single] = len(group) + np.arange(len(single))
    found: Small = np.unique(group, return_inverse=True)[1].astype(np.int32)
    return found


def _scratch(problem: Problem, rules: Rules) -> Assignment:
    """Each unit on its fastest target among those without calls, else among all; or all on one target."""
    n = problem.n_units
    group = groups(problem)
    time = np.where(domains(problem), problem.time, np.inf)
    total: Floats = np.zeros((int(group.max()) + 1, problem.n_targets))
    np.add.at(total, group, time)
    cheap = total + np.where(rules.alone, 0, np.nanmax(np.where(np.isinf(total), 0, total)) * n + 1)
    target = cheap.argmin(axis=1)[group].astype(np.int32)
    plans = [partitioned(problem, target)]
    whole = np.flatnonzero(np.isfinite(time).all(axis=0))
    plans += [Assignment(np.full(n, b, np.int32), np.zeros(n, np.int32)) for b in whole]
    # Where calls are few, units that are spread may need too many.
    return min(plans, key=lambda plan: len(check(problem, plan).violations))


def rules_of(problem: Problem) -> Rules:
    """What moves must respect, and the orders that guide them."""
    f, n, t = flat(problem), problem.n_units, problem.n_targets
    order = narrow(f, False)
    place = np.empty(n, np.int32)
    place[order] = np.arange(n, dtype=np.int32)
    item = groups(problem)
    items = np.argsort(item, kind="stable").astype(np.int32)
    # A target of unlimited slots whose calls and tensors cost nothing is never worse in single units.
    own = np.arange(t)
    entering = problem.receive.max(axis=0, initial=0) + problem.transfer.max(axis=(0, 1), initial=0)
    is_free = (entering == 0) | (problem.charge == "target")
    within = problem.transfer[:, own, own].max(axis=0, initial=0)
    unlimited = (problem.slots[problem.silicon] == 0) & (problem.partitions_per_target == 0)
    alone = unlimited & (problem.call == 0) & (within == 0) & is_free & (problem.max_partitions == 0)
    return Rules(
        order=order,
        place=place,
        rank=upward(f),
        alone=alone,
        item=item.astype(np.int32),
        item_at=np.concatenate([[0], np.cumsum(np.bincount(item))]).astype(np.int32),
        items=items,
        weight=problem.weight_bytes.astype(np.float64),
        error=problem.error,
        pool=problem.pool.astype(np.int32),
        limits=np.concatenate([problem.capacity, [problem.max_error]]),
        per_target=problem.partitions_per_target,
        most=problem.max_partitions,
        objective=_OBJECTIVES.index(problem.objective),
    )
