"""Objectives that add up over targets, as an integer program of the choice of targets, solved by HiGHS."""

from __future__ import annotations

import numpy as np

from hal.planning.domains import need
from hal.planning.labelling import Labelling, Terms, Weights, labels, minimised, size
from hal.planning.partitions import partitioned
from hal.planning.problem import Assignment, Problem, Small
from hal.planning.search import Best, Budget

#: Columns up to which building the model takes less than a second.
_COLUMNS = 60_000
#: HiGHS's tolerance of feasibility: an optimum this close below the best plan's value is that value.
_TOLERANCE = 1e-7
#: The first of the turns that HiGHS gets, seconds, and by how much each is longer than the one before.
_FIRST_TURN, _LONGER = 0.5, 3.0


def applies(problem: Problem) -> bool:
    """Whether the objective adds up, and the model is small enough.

    Energy and memory do, and latency and throughput where all targets share a silicon that runs one
    partition at a time: it is never idle, so latency and load are the sum of all that partitions take.
    """
    if size(problem) > _COLUMNS:
        return False
    return problem.objective in ("energy", "memory") or is_serial(problem)


def is_serial(problem: Problem) -> bool:
    """Whether one silicon does everything, one partition after the other."""
    return problem.n_silicons == 1 and int(problem.slots[0]) == 1


def milp_additive(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Choose targets by an integer program; group them into few partitions; prove the program's bound.

    The program is a relaxation (:class:`~hal.planning.labelling.Labelling`), so that its bound holds for all
    plans. It is exact for energy with ``start="unit"``, and for both starts where calls and handoffs cost
    the same in the partitions found as in the model; then the plan found is optimal, by the bound. For
    memory it knows weights, and what each unit holds while it runs.

    Each turn starts from the best plan and gets more time than the one before, so that a budget that ends
    early still has the plans of the first turns.

    Source: see :class:`~hal.planning.labelling.Labelling` and :func:`~hal.planning.labelling.minimised`.
    """
    if not applies(problem):
        return
    model = Labelling(problem)
    if not (model.can.any(axis=1)).all():
        return
    costs = _memory(model) if problem.objective == "memory" else model.costs(weights_of(problem))
    turn = _FIRST_TURN
    while not budget.is_spent and not best.is_optimal:
        start = best.proposal.assignment.target if best.proposal else None
        solved = minimised(model, costs, min(turn, budget.left), start=start)
        if solved.is_infeasible:
            return
        if solved.values is not None:
            offer(best, labels(model, solved.values), "milp_additive")
        bound = solved.bound
        if solved.is_optimal and best.objective * (1 - _TOLERANCE) <= bound <= best.objective:
            bound = best.objective
        best.prove(bound, "integer program of targets (HiGHS)")
        if solved.is_optimal:
            return
        turn *= _LONGER


def offer(best: Best, target: Small, solver: str) -> None:
    """Offer a choice of targets in few partitions, and unit by unit where that holds less memory."""
    problem = best.problem
    value = best.offer(partitioned(problem, target), solver)
    if problem.start == "partition" and (problem.objective == "memory" or not np.isfinite(value)):
        alone = np.empty(problem.n_units, np.int32)
        alone[problem.order] = np.arange(problem.n_units)
        best.offer(Assignment(target, alone), solver)


def weights_of(problem: Problem) -> Weights:
    """How times add up to the objective."""
    if problem.objective == "energy":
        return Weights(problem.energy, problem.power)
    return Weights(problem.time, np.ones(problem.n_targets))


def _memory(model: Labelling) -> Terms:
    """Adds a column for the highest use of each pool, and rows that hold it up; returns their sum."""
    problem = model.problem
    beside = need(problem)
    most = float(problem.weight_bytes.max(axis=1).sum() + beside.max())
    total: Terms = []
    for pool in range(problem.n_pools):
        inside = [int(b) for b in np.flatnonzero(problem.pool == pool)]
        terms = [term for b in inside for term in model.units(problem.weight_bytes[:, b], b)]
        weight, peak = model.column(upper=most), model.column(upper=min(most, float(problem.capacity[pool])))
        model.row(0, 0, [*terms, (weight, -1.0)])
        model.row(0, np.inf, [(peak, 1.0), (weight, -1.0)])
        for unit in np.flatnonzero(beside[:, inside].any(axis=1)).tolist():
            held = [(model.at(unit, b), -float(beside[unit, b])) for b in inside if model.at(unit, b) >= 0]
            if held:
                model.row(0, np.inf, [(peak, 1.0), (weight, -1.0), *held])
        total.append((peak, 1.0))
    return total
