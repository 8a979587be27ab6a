"""From a plan's partitions to graphs: each with its own inputs and outputs, weights shared with the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from hal.backend import Target
from hal.errors import PlanError, problems
from hal.graph.cut import Cutter
from hal.graph.model import Graph
from hal.records.plan import Plan
from hal.tensor import Array


class Piece(msgspec.Struct, frozen=True):
    """What a plan says of one partition.

    Attributes:
        target: As written by ``str(Target)``.
        nodes: Names of the graph's nodes.
    """

    target: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A partition as a graph.

    Attributes:
        number: Of the partition in the plan.
        target: Where it runs.
        nodes: The nodes that the plan places there; others may come along, see :func:`cut`.
        graph: What is compiled.
        inputs: Names of the values it reads, in the order of the graph's inputs.
        outputs: Names of the values it makes, in the order of the graph's outputs.
    """

    number: int
    target: Target
    nodes: tuple[str, ...]
    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        ends = " to ".join(map(repr, dict.fromkeys((self.nodes[0], self.nodes[-1]))))
        return f"partition {self.number} on {self.target} ({len(self.nodes)} nodes, {ends})"


@dataclass(frozen=True)
class Cut:
    """A graph cut into parts.

    Attributes:
        parts: In the order of execution; partitions that nothing needs are left out.
        constants: Model outputs that no part makes, because they are weights.
    """

    parts: tuple[Part, ...]
    constants: dict[str, Array]


def pieces_of(plan: Plan, graph: Graph) -> tuple[Piece, ...]:
    """What a plan says of its partitions.

    Raises:
        PlanError: The plan was made for another model.
    """
    if plan.model.digest != graph.digest:
        raise PlanError(
            f"the plan was made for model {plan.model.name!r} with digest {plan.model.digest[:12]}, "
            f"the graph {graph.name!r} has {graph.digest[:12]}: weights, nodes or input shapes differ; "
            "plan again"
        )
    return tuple(Piece(partition.target, partition.nodes) for partition in plan.partitions)


def cut(graph: Graph | Cutter, pieces: Sequence[Piece]) -> Cut:
    """Cut a bound graph into the partitions of a plan.

    Weights stay weights of each part that reads them. What is the same in each run is not handed over but
    comes along, as do nodes that no partition has (which backends fold) and nodes whose results are no
    tensors. A model output that such a node computes is made by the latest partition it depends on.
    One partition is the graph itself, unchanged.

    Args:
        graph: To be cut, or its cutter.
        pieces: The partitions in the order of execution.

    Raises:
        PlanError: The partitions do not fit the graph; all faults are named.
        TargetError: A target's name is none.
    """
    cutter = graph if isinstance(graph, Cutter) else Cutter(graph)
    graph = cutter.graph
    _check(cutter, pieces)
    ends = tuple(dict.fromkeys(spec.name for spec in graph.signature.outputs))
    if len(pieces) == 1:
        target = Target.parse(pieces[0].target)
        inputs = tuple(spec.name for spec in graph.signature.inputs)
        return Cut((Part(0, target, tuple(graph.nodes), graph, inputs, ends),), {})
    home = {node: number for number, piece in enumerate(pieces) for node in piece.nodes}
    homeless = [node for node in graph.nodes if node not in home]
    given = {spec.name for spec in graph.signature.inputs}
    constants = {}
    for end in ends:
        array = None if end in given else cutter.constant(end)
        if array is not None:
            constants[end] = array
    wanted = [end for end in ends if end not in given and end not in constants]
    if bad := [end for end in wanted if end not in cutter.values]:
        raise PlanError(
            f"outputs {_some(bad)} of {graph.name!r} are no tensors of a known type, so that only a plan of "
            "one partition can make them; place all nodes on one target"
        )
    for end in wanted:
        producer = cutter.values[end]
        if producer not in home:
            read = _crossing(cutter, *cutter.along([producer], homeless), given)
            home[producer] = max((home[str(cutter.producer(value))] for value in read), default=0)
    members: list[list[str]] = [[] for _ in pieces]
    for node, number in home.items():
        members[number].append(node)
    still_homeless = frozenset(homeless) - home.keys()
    along = [cutter.along(nodes, still_homeless) for nodes in members]
    reads = [_crossing(cutter, taken, constant, given) for taken, constant in along]
    makes = [set(values) for values in _made(cutter, home, reads, wanted, len(pieces))]
    _check_order(cutter, pieces, home, reads)
    parts = []
    for number, piece in enumerate(pieces):
        outputs = [value for value in cutter.values if value in makes[number]]
        if not outputs:
            continue
        part = cutter.part(along[number][0], outputs, storable=False)
        parts.append(
            Part(
                number,
                Target.parse(piece.target),
                tuple(cutter.ordered(members[number])),
                part,
                tuple(spec.name for spec in part.signature.inputs),
                tuple(outputs),
            )
        )
    return Cut(tuple(parts), constants)


def _crossing(
    cutter: Cutter, taken: Iterable[str], constants: Iterable[str], given: set[str]
) -> dict[str, None]:
    """Values that nodes read from other nodes, those that become weights apart."""
    taken, known = set(taken), {*constants, *given}
    return {
        value: None
        for node in cutter.ordered(taken)
        for value in cutter.reads(node)
        if value not in known and (producer := cutter.producer(value)) is not None and producer not in taken
    }


def _made(
    cutter: Cutter, home: dict[str, int], reads: Sequence[Iterable[str]], wanted: Iterable[str], n_pieces: int
) -> list[list[str]]:
    """What each partition must hand on or return."""
    makes: list[list[str]] = [[] for _ in range(n_pieces)]
    for value in (*wanted, *(value for values in reads for value in values)):
        makes[home[str(cutter.producer(value))]].append(value)
    return makes


def _check(cutter: Cutter, pieces: Sequence[Piece]) -> None:
    found, seen = [], dict[str, int]()
    if not pieces:
        found.append("it has no partition; expected at least one")
    for number, piece in enumerate(pieces):
        unknown = [node for node in piece.nodes if node not in cutter.graph.nodes]
        if unknown:
            found.append(f"partition {number} has {_some(unknown)}, no nodes of the graph")
        if not piece.nodes:
            found.append(f"partition {number} has no nodes")
        twice = [node for node in piece.nodes if seen.setdefault(node, number) != number]
        if twice:
            found.append(f"partition {number} has {_some(twice)}, which partition {seen[twice[0]]} has too")
    if found:
        raise PlanError(problems(f"the plan does not fit the graph {cutter.graph.name!r}", found))


def _check_order(
    cutter: Cutter, pieces: Sequence[Piece], home: dict[str, int], reads: Sequence[Iterable[str]]
) -> None:
    found = []
    for number, values in enumerate(reads):
        for value in values:
            producer = str(cutter.producer(value))
            if home[producer] >= number:
                found.append(
                    f"partition {number} on {pieces[number].target} reads {value!r} of node {producer!r}, "
                    f"which partition {home[producer]} computes; expected an earlier one"
                )
            elif not cutter.is_sized(value):
                found.append(
                    f"{value!r} of node {producer!r} has no known size, so that it cannot be handed from "
                    f"partition {home[producer]} to partition {number}; place its readers with it"
                )
    if found:
        raise PlanError(problems(f"the plan cannot be carried out on {cutter.graph.name!r}", found))


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + rest


__all__ = ["Cut", "Part", "Piece", "cut", "pieces_of"]
