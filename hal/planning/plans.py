"""From an assignment to a plan that can be saved, printed and carried out, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from hal.errors import PlanError, problems
from hal.planning.check import check
from hal.planning.costs import Modelled
from hal.planning.costs_units import is_fixed
from hal.planning.explain import reasons
from hal.planning.problem import Assignment
from hal.planning.simulate import Simulation, simulate
from hal.planning.solution import Solution
from hal.records.facts import NodeFact
from hal.records.plan import (
    PLAN_SCHEMA_VERSION,
    Bound,
    Partition,
    Plan,
    Prediction,
    Transfer,
)
from hal.version import __version__


def plan_of(
    modelled: Modelled,
    assignment: Assignment,
    *,
    solver: str,
    bound: float = 0.0,
    bound_source: str = "nothing is below 0",
    notes: Sequence[str] = (),
) -> Plan:
    """The plan that an assignment stands for, with the simulator's predictions and the reasons.

    Every node of the model is in exactly one partition. Those that compute the same in each run are in the
    first that reads them; the executor gives them to the others too.

    Args:
        modelled: The problem.
        assignment: Of its units; keeps its constraints.
        solver: That found it.
        bound: No plan is below it, in the unit of the problem's objective.
        bound_source: Who proved that.
        notes: What the reader should know beside the problem's own notes.

    Raises:
        PlanError: The assignment breaks a constraint; all are named.
    """
    problem, profile = modelled.problem, modelled.profile
    simulation = simulate(modelled.carried_out(assignment), assignment)
    if simulation.violations:
        found = [violation.text for violation in simulation.violations]
        raise PlanError(problems(f"the placement of {profile.model.name!r} breaks constraints", found))
    members = _members(modelled, assignment)
    partitions = _partitions(modelled, assignment, simulation, members)
    used = {partition.target for partition in partitions}
    value = simulation.objective(problem.objective)
    places = [
        place for place, name in zip(modelled.places, problem.target_names, strict=True) if name in used
    ]
    ends = {place.end for place in places} | {"host"}
    return Plan(
        schema_version=PLAN_SCHEMA_VERSION,
        hal_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=profile.model,
        environment=None if modelled.is_imagined else profile.environment,
        machine=modelled.machine,
        devices=tuple({id(place.device): place.device for place in places}.values()),
        constraints=modelled.constraints,
        partitions=partitions,
        transfers=tuple(_transfers(modelled, assignment, simulation)),
        predicted=Prediction(
            latency_ns=round(simulation.latency),
            interval_ns=round(simulation.throughput),
            energy_mj=_energy(modelled, simulation, used),
            memory_bytes={
                name: round(use.peak) for name, use in zip(problem.pool_names, simulation.memory, strict=True)
            },
            error=math.sqrt(float(problem.error[np.arange(problem.n_units), assignment.target].sum())),
        ),
        bound=Bound(value=bound, source=bound_source, gap=max(value - bound, 0.0) / value if value else 0.0),
        solver=solver,
        links=tuple(link for link in modelled.links if link.source in ends and link.destination in ends),
        estimated=modelled.estimated,
        notes=(*modelled.notes, *notes),
    )


def ranked(modelled: Modelled, solution: Solution) -> Solution:
    """A solution as it is when carried out: what taking turns costs counts for each plan's own order.

    The solvers' bound holds for plans of several partitions. One of a single partition takes no turns, and is
    less by what the problem charges for them: the bound is at most the best of these.

    Args:
        modelled: The problem.
        solution: Of it.
    """
    if not modelled.switches:
        return solution
    proposals = []
    for one in solution.proposals:
        problem = modelled.carried_out(one.assignment)
        checked = check(problem, one.assignment)
        proposals.append(one._replace(objective=checked.objective(problem), checked=checked))
    proposals.sort(key=lambda one: one.objective)
    alone = [one.objective for one in proposals if one.assignment.n_partitions == 1]
    bound = min([solution.bound, *alone])
    best = proposals[0].objective
    gap = max(best - bound, 0.0) / best if best else 0.0
    return dataclasses.replace(solution, proposals=tuple(proposals), bound=bound, gap=gap)


def assignment_of(modelled: Modelled, plan: Plan) -> Assignment:
    """The assignment that a plan stands for, for example one that was read from a file.

    Partitions are matched by their nodes, so that a plan fits problems whose units were found anew.

    Args:
        modelled: The problem.
        plan: Of the same model.

    Raises:
        PlanError: It is of another model, or does not fit the problem's units and targets; all faults are
            named.
    """
    problem, profile = modelled.problem, modelled.profile
    if plan.model.digest != profile.model.digest:
        raise PlanError(
            f"the plan is of model {plan.model.name!r} with digest {plan.model.digest[:12]}, the profile of "
            f"{profile.model.name!r} with {profile.model.digest[:12]}: weights, nodes or input shapes "
            "differ; plan again"
        )
    number = {name: at for at, name in enumerate(problem.target_names)}
    home: dict[str, int] = {}
    found = []
    for at, partition in enumerate(plan.partitions):
        if partition.target not in number:
            why = modelled.excluded.get(partition.target, "it is not in the profile")
            found.append(f"partition {at} is on {partition.target}, which cannot be used: {why}")
        found += [
            f"node {node!r} is in partitions {home[node]} and {at}"
            for node in partition.nodes
            if home.setdefault(node, at) != at
        ]
    partition_of = np.zeros(problem.n_units, np.int32)
    for unit, record in enumerate(modelled.placed.units):
        places = {home.get(node) for node in record.nodes}
        if None in places:
            missing = next(node for node in record.nodes if node not in home)
            found.append(f"node {missing!r} is in no partition")
        elif len(places) > 1:
            text = ", ".join(str(place) for place in sorted(p for p in places if p is not None))
            found.append(f"unit {record.name!r}, which is placed whole, is in partitions {text}")
        partition_of[unit] = min((place for place in places if place is not None), default=0)
    if found:
        raise PlanError(problems(f"the plan does not fit the profile of {profile.model.name!r}", found))
    target = np.array([number[partition.target] for partition in plan.partitions], np.int32)[partition_of]
    # Partitions of nodes that compute the same in each run have no unit.
    _, dense = np.unique(partition_of, return_inverse=True)
    return Assignment(target, dense.reshape(-1).astype(np.int32))


def _members(modelled: Modelled, assignment: Assignment) -> list[list[NodeFact]]:
    """Nodes of each partition, in the order of the graph."""
    facts, placed = modelled.facts, modelled.placed
    partition = assignment.partition.tolist()
    home = {node: partition[unit] for node, unit in placed.home.items()}
    first: dict[str, int] = {}
    for node in reversed(facts.nodes):
        if node.name not in home:
            assert is_fixed(facts, node)
            readers = [first[value] for value in node.writes if value in first]
            home[node.name] = min(readers, default=0)
        for value in node.reads:
            first[value] = min(first.get(value, home[node.name]), home[node.name])
    members: list[list[NodeFact]] = [[] for _ in range(assignment.n_partitions)]
    for node in facts.nodes:
        members[home[node.name]].append(node)
    return members


def _partitions(
    modelled: Modelled, assignment: Assignment, simulation: Simulation, members: Sequence[Sequence[NodeFact]]
) -> tuple[Partition, ...]:
    problem, placed, facts = modelled.problem, modelled.placed, modelled.facts
    calls = {event.partition: event for event in simulation.events if event.kind == "compute"}
    maker = {
        value: at for at, nodes in enumerate(members) for node in nodes for value in node.writes if value
    }
    wanted: list[dict[str, None]] = [{} for _ in members]
    for at, nodes in enumerate(members):
        for value in _read(nodes):
            if maker.get(value, at) != at and value not in facts.weights:
                wanted[maker[value]][value] = None
    for value in facts.outputs:
        if value in maker:
            wanted[maker[value]][value] = None
    given = set(facts.inputs) - facts.weights
    whys = reasons(modelled, assignment)
    found = []
    for at, nodes in enumerate(members):
        inside = np.flatnonzero(assignment.partition == at)
        target = int(assignment.target[inside[0]])
        event, compute = calls[at], float(problem.time[inside, target].sum())
        read = _read(nodes)
        found.append(
            Partition(
                target=problem.target_names[target],
                units=tuple(placed.units[unit].name for unit in inside.tolist()),
                nodes=tuple(node.name for node in nodes),
                inputs=tuple(
                    value
                    for value in read
                    if value not in facts.weights and (value in given or maker.get(value, at) != at)
                ),
                outputs=tuple(value for node in nodes for value in node.writes if value in wanted[at]),
                start_ns=round(event.start),
                end_ns=round(event.end),
                compute_ns=round(compute),
                handoff_ns=max(round(event.end - event.start - compute), 0),
                weight_bytes=sum(facts.value_bytes.get(value, 0) for value in read if value in facts.weights),
                reason=whys[at].text,
                runner_up=whys[at].runner_up,
            )
        )
    return tuple(found)


def _transfers(modelled: Modelled, assignment: Assignment, simulation: Simulation) -> list[Transfer]:
    """Every tensor between two partitions, or from the caller, by reading partition.

    One that is handed over within the call of the partition that reads it is shown behind the call's own
    cost, one after the other.
    """
    problem, placed = modelled.problem, modelled.placed
    beside = {(e.tensor, e.partition): e for e in simulation.events if e.kind == "handoff"}
    starts = {e.partition: e.start for e in simulation.events if e.kind == "compute"}
    targets = {int(p): int(t) for p, t in zip(assignment.partition, assignment.target, strict=True)}
    reads = set()
    for value, unit in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
        maker = int(problem.producer[value])
        source = -1 if maker < 0 else int(assignment.partition[maker])
        destination = int(assignment.partition[unit])
        if source != destination:
            reads.add((destination, source, value))
    found = []
    within: dict[int, float] = {}
    for destination, source, value in sorted(reads):
        event = beside.get((value, destination))
        b = targets[destination]
        if event is not None:
            start, end = event.start, event.end
        else:
            start = within.get(destination, starts[destination] + float(problem.call[b]))
            taken = float(problem.receive[value, b]) if source < 0 or targets[source] != b else 0.0
            if source >= 0:
                taken += float(problem.transfer[value, targets[source], b])
            end = within[destination] = start + taken
        found.append(
            Transfer(
                value=placed.values[value],
                source=source,
                destination=destination,
                n_bytes=modelled.facts.value_bytes.get(placed.values[value]),
                start_ns=round(start),
                end_ns=round(end),
            )
        )
    return found


def _energy(modelled: Modelled, simulation: Simulation, used: set[str]) -> float | None:
    """Millijoules; None where a target's energy is not known."""
    by_name: Mapping[str, bool] = {
        target.target: target.energy is not None for target in modelled.profile.targets
    }
    return simulation.energy if all(by_name[name] for name in used) else None


def _read(nodes: Sequence[NodeFact]) -> dict[str, None]:
    return {value: None for node in nodes for value in node.reads if value}
