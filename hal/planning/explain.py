"""Why a partition is where it is, and what it would cost to move it, or a single node, elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from hal.errors import PlanError
from hal.planning.check import check
from hal.planning.costs import Modelled
from hal.planning.costs_units import is_fixed
from hal.planning.problem import Assignment, Problem, Small
from hal.planning.twins import plain_twin
from hal.records.plan import Alternative, Plan
from hal.units import format_bytes, format_ns

#: Other placements that are tried for the runner-ups of one plan, at most.
#: Source: each takes 0.1 to 1 ms, and nobody waits longer than seconds gladly.
_MOST_TRIALS = 4000


class Reason(NamedTuple):
    """Why a partition is on its target.

    Attributes:
        text: One sentence.
        runner_up: The best other target; None where no other keeps the constraints.
    """

    text: str
    runner_up: Alternative | None


class TargetCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's unit would cost on a target.

    Attributes:
        target: The target.
        compute_ns: Time of the unit; None where it cannot run there.
        objective: Of the whole plan with the unit there and all else as it is, in the objective's unit; None
            where that breaks a constraint.
        reason: Why not, where one of them is None.
    """

    target: str
    compute_ns: int | None = None
    objective: float | None = None
    reason: str = ""


class NodeExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node is, and what it would cost to move it.

    Attributes:
        node: Its name.
        op: Its operator.
        unit: The unit that it is placed with; empty for what is computed once, when the model is compiled.
        nodes: All nodes of the unit.
        partition: Number of its partition in the plan.
        target: Where it runs.
        reason: Why its partition is there.
        objective: Of the plan as it is, in the objective's unit.
        targets: What the unit would cost on each target, the cheapest plan first.
    """

    node: str
    op: str
    unit: str
    nodes: tuple[str, ...]
    partition: int
    target: str
    reason: str
    objective: float
    targets: tuple[TargetCost, ...] = ()


def reasons(modelled: Modelled, assignment: Assignment) -> list[Reason]:
    """For each partition of a plan, why it is where it is, and the runner-up.

    Args:
        modelled: The problem.
        assignment: The plan; it keeps all constraints.
    """
    problem = modelled.problem
    here = _value(modelled, assignment)
    targets = _targets(assignment)
    trials_left = _MOST_TRIALS
    found = []
    for number, target in enumerate(targets.tolist()):
        inside = np.flatnonzero(assignment.partition == number)
        others = [
            b
            for b in range(problem.n_targets)
            if b != target and problem.allowed[inside, b].all() and not _are_twins(problem, b, target)
        ]
        trials_left -= len(others)
        best: tuple[float, int] | None = None
        for other in others if trials_left >= 0 else ():
            moved = assignment.target.copy()
            moved[inside] = other
            value = _value(modelled, _merged(moved, assignment.partition))
            if np.isfinite(value) and (best is None or value < best[0]):
                best = (value, other)
        found.append(_reason(modelled, inside, target, best, here, len(targets), len(others)))
    return found


def explain_node(modelled: Modelled, plan: Plan, node: str) -> NodeExplanation:
    """Where a node is in a plan, and what it would cost to move it.

    Args:
        modelled: The problem that the plan is of.
        plan: The plan.
        node: Name of a node, or of a unit.

    Raises:
        PlanError: There is no such node, or the plan is of another problem.
    """
    from hal.planning.plans import assignment_of

    assignment = assignment_of(modelled, plan)
    facts, placed, problem = modelled.facts, modelled.placed, modelled.problem
    by_name = facts.by_name()
    if node not in by_name:
        unit_names = {unit.name: unit.nodes[0] for unit in placed.units}
        if node not in unit_names:
            near = ", ".join(name for name in (*by_name, *unit_names) if node.lower() in name.lower()) or (
                f"{facts.nodes[0].name} to {facts.nodes[-1].name}"
            )
            raise PlanError(f"model {plan.model.name!r} has no node {node!r}; there are {near}")
        node = unit_names[node]
    number = next(at for at, partition in enumerate(plan.partitions) if node in partition.nodes)
    partition = plan.partitions[number]
    fact = by_name[node]
    here = _value(modelled, assignment)
    if node not in placed.home:
        assert is_fixed(facts, fact)
        return NodeExplanation(
            node=node,
            op=fact.op,
            unit="",
            nodes=(node,),
            partition=number,
            target=partition.target,
            reason="it computes the same in each run, and is computed once, when its readers are compiled",
            objective=here,
        )
    unit = placed.home[node]
    costs = [_cost(modelled, assignment, unit, b, here) for b in range(problem.n_targets)]
    costs.sort(key=lambda cost: (cost.objective is None, cost.objective or 0.0, cost.compute_ns or 0))
    return NodeExplanation(
        node=node,
        op=fact.op,
        unit=placed.units[unit].name,
        nodes=placed.units[unit].nodes,
        partition=number,
        target=partition.target,
        reason=partition.reason,
        objective=here,
        targets=tuple(costs),
    )


def format_objective(name: str, value: float) -> str:
    """A value of an objective with its unit."""
    if name == "energy":
        return f"{value:.3g} mJ"
    return format_bytes(value) if name == "memory" else format_ns(value)


def _are_twins(problem: Problem, one: int, other: int) -> bool:
    """Whether both are one target, with threads that spin and with threads at rest: no choice of a user's."""
    a, b = problem.target_names[one], problem.target_names[other]
    return plain_twin(a) == b or plain_twin(b) == a


def _targets(assignment: Assignment) -> Small:
    """Target of each partition."""
    found = np.zeros(assignment.n_partitions, np.int32)
    found[assignment.partition] = assignment.target
    return found


def _merged(target: Small, ranks: Small) -> Assignment:
    """An assignment in which neighbours on one target are one partition.

    Args:
        target: Of each unit.
        ranks: Of each unit; units of one rank are one partition, and they run by rising ranks.
    """
    _, order = np.unique(ranks, return_inverse=True)
    order = order.reshape(-1)
    first = np.zeros(order.max() + 1, np.int32)
    first[order] = target
    starts = np.concatenate([[0], np.cumsum(first[1:] != first[:-1])])
    return Assignment(np.ascontiguousarray(target, np.int32), starts[order].astype(np.int32))


def _value(modelled: Modelled, assignment: Assignment) -> float:
    """The objective; infinite where a constraint breaks."""
    problem = modelled.carried_out(assignment)
    checked = check(problem, assignment)
    return float("inf") if checked.violations else checked.objective(problem)


def _reason(
    modelled: Modelled,
    inside: np.ndarray[tuple[int], np.dtype[np.intp]],
    target: int,
    best: tuple[float, int] | None,
    here: float,
    n_partitions: int,
    n_others: int,
) -> Reason:
    problem, objective = modelled.problem, modelled.constraints.objective
    name = problem.target_names[target]
    if best is None:
        if not n_others:
            why = {
                problem.reasons.get((int(unit), b), "it cannot compute it")
                for unit in inside[:1]
                for b in range(problem.n_targets)
                if b != target
            }
            more = f" ({'; '.join(sorted(why))})" if why else ""
            return Reason(f"no other target can compute all of it{more}", None)
        return Reason("on every other target it would break a constraint", None)
    value, other = best
    there = problem.target_names[other]
    taken, instead = problem.time[inside, target].sum(), problem.time[inside, other].sum()
    whole = "the model" if n_partitions == 1 else "the plan"
    values = [format_objective(objective, each) for each in (value, here)]
    outcome = f"{whole} would take {values[0]} instead of {values[1]}"
    if values[0] == values[1] and value != here:
        outcome += f" ({value / here - 1:+.2%})"
    if objective == "memory":
        return Reason(f"on {there} {outcome}", Alternative(target=there, objective=value))
    text = f"its units take {format_ns(taken)} on {name} and {format_ns(instead)} on {there}"
    if n_partitions == 1:
        text = (
            f"the model takes {format_ns(taken)} on {name} and {format_ns(instead)} on {there}, the next best"
        )
    elif instead < taken and value >= here:
        text += ", but handing over would cost more than that saves"
    if n_partitions > 1 or objective != "latency":
        text += f": {outcome}"
    return Reason(text, Alternative(target=there, objective=value))


def _cost(modelled: Modelled, assignment: Assignment, unit: int, b: int, here: float) -> TargetCost:
    problem = modelled.problem
    name = problem.target_names[b]
    if not problem.allowed[unit, b]:
        reason = problem.reasons.get((unit, b), "it cannot compute it")
        return TargetCost(target=name, reason=reason)
    compute_ns = round(problem.time[unit, b])
    if b == assignment.target[unit]:
        return TargetCost(target=name, compute_ns=compute_ns, objective=here)
    best, why = float("inf"), ""
    for moved in _moves(problem, assignment, unit, b):
        carried = modelled.carried_out(moved)
        checked = check(carried, moved)
        if checked.violations:
            why = checked.violations[0].text
        else:
            best = min(best, checked.objective(carried))
    if np.isfinite(best):
        return TargetCost(target=name, compute_ns=compute_ns, objective=best)
    return TargetCost(target=name, compute_ns=compute_ns, reason=why)


def _moves(problem: Problem, assignment: Assignment, unit: int, b: int) -> Iterator[Assignment]:
    """The plan with one unit on another target: as early in its partition as it can run, and as late."""
    mates = set(np.flatnonzero(assignment.partition == assignment.partition[unit]).tolist())
    group = problem.same_device[unit]
    target = assignment.target.copy()
    target[unit] = b
    if group >= 0:
        target[problem.same_device == group] = b
    for forward in (False, True):
        near = _reached(problem, unit, mates, forward=forward)
        ranks = 3 * assignment.partition.astype(np.int64)
        for mate in mates - {unit}:
            is_before = mate not in near if forward else mate in near
            ranks[mate] += -1 if is_before else 1
        yield _merged(target, ranks.astype(np.int32))


def _reached(problem: Problem, unit: int, within: set[int], *, forward: bool) -> set[int]:
    """Units of a set that depend on a unit, or that it depends on."""
    found: set[int] = set()
    pairs: dict[int, list[int]] = {}
    for maker, reader in _edges(problem):
        if maker in within and reader in within:
            one, other = (maker, reader) if forward else (reader, maker)
            pairs.setdefault(one, []).append(other)
    waiting = [unit]
    while waiting:
        for other in pairs.get(waiting.pop(), []):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def _edges(problem: Problem) -> Sequence[tuple[int, int]]:
    makers = problem.producer[problem.read_tensor]
    inner = makers >= 0
    return list(zip(makers[inner].tolist(), problem.read_unit[inner].tolist(), strict=True))
