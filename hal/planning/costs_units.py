"""What a problem places: the units of a profile, widened so that every node that works is in exactly one.

Nodes that are the same in each run are in none: the executor gives each partition those that it reads. Other
nodes of no unit (every runtime computes them when it compiles, though their values change by what is known of
them) join the one unit that they read from; where there is none or several, they are units that take no time.

A value whose size is not known cannot be handed over, and what that would cost is not known: its reader and
its maker become one unit, widened until units form a graph without cycles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hal.planning.contraction import Joined, components, contracted, ordered
from hal.records.facts import ModelFacts, NodeFact
from hal.records.profile import Unit, UnitCost


@dataclass(frozen=True)
class Placeable:
    """Units and the values between them.

    Attributes:
        units: In topological order.
        home: Number of the unit of each node that is in one.
        values: Values that one unit reads and another makes, that come from the caller, or that the model
            returns.
        producer: Number of the unit that makes each value; -1 where it comes from the caller.
        readers: Numbers of the units that read each value, its maker not among them.
        is_output: Whether the model returns it.
        n_bytes: Its size; 0 where that is not known, which is no unit's business.
    """

    units: tuple[Unit, ...]
    home: Mapping[str, int]
    values: tuple[str, ...]
    producer: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]
    is_output: tuple[bool, ...]
    n_bytes: tuple[int, ...]


def is_fixed(facts: ModelFacts, node: NodeFact) -> bool:
    """Whether a node computes the same in each run."""
    return bool(node.writes) and facts.weights.issuperset(filter(None, node.writes))


def placeable(facts: ModelFacts, units: Sequence[Unit]) -> Placeable:
    """The units that are placed, and the values between them.

    Args:
        facts: Of the model.
        units: Of its profile; where there are none, all nodes are one.
    """
    if not units:
        whole = Unit(name=facts.nodes[0].name, nodes=tuple(node.name for node in facts.nodes))
        units = (whole,)
    members = _members(facts, units)
    members = _closed(facts, members)
    known = {frozenset(unit.nodes): unit for unit in units}
    made = [
        known.get(frozenset(node.name for node in nodes)) or _unit(facts, nodes, units) for nodes in members
    ]
    home = {node.name: number for number, nodes in enumerate(members) for node in nodes}
    return _with_values(facts, tuple(made), home)


def _members(facts: ModelFacts, units: Sequence[Unit]) -> list[list[NodeFact]]:
    """Nodes of each unit, those that belong to none put somewhere."""
    home = {node: number for number, unit in enumerate(units) for node in unit.nodes}
    members: list[list[NodeFact]] = [[] for _ in units]
    maker: dict[str, int] = {}
    for node in facts.nodes:
        number = home.get(node.name)
        if number is None and not is_fixed(facts, node):
            feeding = {maker[value] for value in node.reads if value in maker}
            # To join the only unit that feeds it makes no cycle: all its paths led through that unit.
            number = feeding.pop() if len(feeding) == 1 else len(members)
            if number == len(members):
                members.append([])
        if number is not None:
            members[number].append(node)
            maker |= {value: number for value in node.writes if value and value not in facts.weights}
    return [nodes for nodes in members if nodes]


def _closed(facts: ModelFacts, members: Sequence[list[NodeFact]]) -> list[list[NodeFact]]:
    """Units joined where a value of unknown size is between them; in topological order."""
    maker = {value: number for number, nodes in enumerate(members) for node in nodes for value in node.writes}
    edges: list[set[int]] = [set() for _ in members]
    joined = Joined(len(members))
    for number, nodes in enumerate(members):
        for value in _read(nodes):
            other = maker.get(value, number)
            if other == number or value in facts.weights:
                continue
            edges[other].add(number)
            if value not in facts.value_bytes:
                joined.join((other, number))
    groups = _numbered(joined.find(number) for number in range(len(members)))
    merged = components(contracted(groups, edges))
    groups = _numbered(merged[group] for group in groups)
    position = {node.name: at for at, node in enumerate(facts.nodes)}
    found: list[list[NodeFact]] = [[] for _ in range(max(groups) + 1)]
    for number, nodes in enumerate(members):
        found[groups[number]] += nodes
    for nodes in found:
        nodes.sort(key=lambda node: position[node.name])
    order = ordered([position[nodes[0].name] for nodes in found], contracted(groups, edges))
    return [found[number] for number in order]


def _unit(facts: ModelFacts, nodes: Sequence[NodeFact], units: Sequence[Unit]) -> Unit:
    """A unit that the profile has not: of several of its own, or of nodes that it has in none."""
    names = {node.name for node in nodes}
    inside = [unit for unit in units if names.intersection(unit.nodes)]
    work = facts.work(names)
    shared = set.intersection(*(set(unit.costs) for unit in inside)) if inside else set()
    return Unit(
        name=inside[0].name if inside else nodes[0].name,
        nodes=tuple(node.name for node in nodes),
        flops=work.flops,
        moved_bytes=work.moved_bytes,
        weight_bytes=work.weight_bytes,
        activation_bytes=work.activation_bytes,
        costs={target: _sum(unit.costs[target] for unit in inside) for target in sorted(shared)},
    )


def _sum(costs: Iterable[UnitCost]) -> UnitCost:
    found = list(costs)
    return UnitCost(
        median_ns=sum(cost.median_ns for cost in found),
        p10_ns=sum(cost.p10_ns for cost in found),
        p90_ns=sum(cost.p90_ns for cost in found),
        n=min(cost.n for cost in found),
    )


def _with_values(facts: ModelFacts, units: tuple[Unit, ...], home: Mapping[str, int]) -> Placeable:
    nodes = facts.by_name()
    given = {value for value in facts.inputs if value not in facts.weights}
    maker = dict.fromkeys(given, -1)
    readers: dict[str, list[int]] = {value: [] for value in facts.inputs if value in given}
    for number, unit in enumerate(units):
        for value in _read([nodes[name] for name in unit.nodes]):
            if value in readers and maker[value] != number:
                readers[value].append(number)
        for name in unit.nodes:
            for value in nodes[name].writes:
                if value and value not in facts.weights:
                    maker[value] = number
                    readers.setdefault(value, [])
    wanted = set(facts.outputs)
    values = [value for value, found in readers.items() if found or (value in wanted and maker[value] >= 0)]
    return Placeable(
        units=units,
        home=home,
        values=tuple(values),
        producer=tuple(maker[value] for value in values),
        readers=tuple(tuple(readers[value]) for value in values),
        is_output=tuple(value in wanted and maker[value] >= 0 for value in values),
        n_bytes=tuple(facts.value_bytes.get(value, 0) for value in values),
    )


def _read(nodes: Iterable[NodeFact]) -> dict[str, None]:
    return {value: None for node in nodes for value in node.reads if value}


def _numbered(marks: Iterable[int]) -> list[int]:
    numbers: dict[int, int] = {}
    return [numbers.setdefault(mark, len(numbers)) for mark in marks]
