"""From the runtime's kernels back to the graph's nodes, by names and the values at their boundary.

ONNX Runtime rewrites a graph before it runs: it folds, fuses, reorders layouts and moves
transposes. It keeps the names of values that cross the boundary of what it rewrites, and the name
of one of the nodes it fuses. From both, the nodes of one graph that a node of a later graph
computes can be read off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec
import onnx_ir as ir

_NCHWC = "com.microsoft.nchwc"
_NCHWC_SUFFIX = "_nchwc"
# Pure moves of data: the value is the same on both sides.
_REORDERS = ("ReorderInput", "ReorderOutput")
# Operators whose result is known once shapes are bound, or that have none at all.
_FROM_SHAPES = ("Shape", "Size")
_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)


class Flat(msgspec.Struct, frozen=True):
    """A top-level node, with what its subgraphs read from outside among its inputs."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class FlatGraph:
    """A graph as names only.

    Attributes:
        nodes: Top-level nodes by name, in topological order.
        producer: Value to the top-level node it comes from, values inside subgraphs included.
        parent: Node inside a subgraph to the node that holds the subgraph.
        sized: Nodes whose first input has a known shape.
        given: Graph inputs and initializers.
        outputs: Graph outputs.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes: dict[str, Flat] = {}
        self.producer: dict[str, str] = {}
        self.parent: dict[str, str] = {}
        self.initializers = set(graph.initializers)
        self.given = {str(value.name) for value in graph.inputs} | self.initializers
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self.consumers: dict[str, list[str]] = {}
        self.sized: set[str] = set()
        for index, node in enumerate(graph):
            self._add(node, index)

    def _add(self, node: ir.Node, index: int) -> None:
        name = node.name or f"{node.op_type}_{index}"
        outputs = tuple(str(value.name) for value in node.outputs if value.name)
        # Positions matter for alignment, so absent inputs keep theirs as an empty name.
        inputs = [str(value.name) if value is not None else "" for value in node.inputs]
        inputs.extend(value for value in self._walk(node, name, name) if value not in inputs)
        self.nodes[name] = Flat(name, node.op_type, node.domain, tuple(inputs), outputs)
        for value in outputs:
            self.producer[value] = name
        for value in filter(None, inputs):
            self.consumers.setdefault(value, []).append(name)
        first = node.inputs[0] if node.inputs else None
        if first is not None and first.shape is not None and first.shape.is_static():
            self.sized.add(name)

    def constant(self, kept: Collection[str]) -> set[str]:
        """Nodes whose results are known when the graph is compiled.

        Args:
            kept: Names of nodes that run all the same. An operator that reads a shape and is not
                among them was replaced by the shape, whether or not the file tells it.
        """
        found: set[str] = set()
        known = set(self.initializers)
        for node in self.nodes.values():
            if node.op in _FROM_SHAPES:
                fixed = node.name in self.sized or node.name not in kept
            else:
                fixed = node.op not in _RANDOM and all(value in known for value in node.inputs if value)
            if fixed:
                found.add(node.name)
                known.update(node.outputs)
        return found

    def _walk(self, node: ir.Node, name: str, top: str) -> Iterable[str]:
        """Register what lies inside a node's subgraphs; yields the values read from outside."""
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                bodies = [attribute.as_graph()]
            elif attribute.type == ir.AttributeType.GRAPHS:
                bodies = list(attribute.as_graphs())
            else:
                continue
            for body in bodies:
                inside = {str(value.name) for value in body.inputs} | set(body.initializers)
                read: list[str] = [str(value.name) for value in body.outputs]
                for index, inner in enumerate(body):
                    inner_name = inner.name or f"{inner.op_type}_{index}"
                    self.parent[inner_name] = name
                    for value in inner.outputs:
                        inside.add(str(value.name))
                        self.producer.setdefault(str(value.name), top)
                    read.extend(str(value.name) for value in inner.inputs if value is not None)
                    read.extend(self._walk(inner, inner_name, top))
                yield from (value for value in dict.fromkeys(read) if value and value not in inside)

    def top(self, name: str) -> str:
        """The top-level node that a node lies in."""
        while name in self.parent:
            name = self.parent[name]
        return name


def node_covers(before: FlatGraph, after: FlatGraph) -> dict[str, tuple[str, ...]]:
    """For each node of the later graph, the earlier graph's nodes that it helps to compute.

    Nodes whose results are known at compile time are in no cover, unless they are still there.
    """
    owner = _owners(before, after)
    alias = _aliases(before, after, owner)
    owned = {node: kernel for kernel, node in owner.items()}
    constant = before.constant(after.nodes)
    there = {alias[value] for value in alias if value in after.producer or value in after.given}
    order = {name: position for position, name in enumerate(before.nodes)}
    covers: dict[str, tuple[str, ...]] = {}
    for kernel in after.nodes.values():
        found: set[str] = {owner[kernel.name]} if kernel.name in owner else set()
        results = [alias[value] for value in kernel.outputs if value in alias]
        if kernel.name in owner:
            # A fusion keeps the name of one of its nodes: what feeds that node lies in its region too.
            results.extend(before.nodes[owner[kernel.name]].outputs)
        pending = list(results)
        seen: set[str] = set()
        while pending:
            value = pending.pop()
            node = before.producer.get(value)
            if value in seen or node is None or (value in there and value not in results):
                continue
            seen.add(value)
            if owned.get(node, kernel.name) != kernel.name:
                continue
            if node in constant and node not in found:
                continue
            found.add(node)
            pending.extend(before.nodes[node].inputs)
        covers[kernel.name] = tuple(sorted(found, key=order.__getitem__))
    _lend(after, alias, covers)
    return covers


def folded_nodes(before: FlatGraph, covered: Collection[str]) -> tuple[str, ...]:
    """Nodes that cost nothing per run: known at compile time, or needed by no output."""
    constant = before.constant(covered)
    needed: set[str] = set()
    pending = list(before.outputs)
    while pending:
        node = before.producer.get(pending.pop())
        if node is not None and node not in needed:
            needed.add(node)
            pending.extend(filter(None, before.nodes[node].inputs))
    return tuple(
        name for name in before.nodes if name not in covered and (name in constant or name not in needed)
    )


def absorb(before: FlatGraph, covers: dict[str, tuple[str, ...]]) -> None:
    """Give nodes that vanished before a kernel was compiled to the kernels of what reads them."""
    holders: dict[str, list[str]] = {}
    constant = before.constant({node for nodes in covers.values() for node in nodes})
    for kernel, nodes in covers.items():
        for node in nodes:
            holders.setdefault(node, []).append(kernel)
    for gone in reversed(list(before.nodes.values())):
        if gone.name in holders or gone.name in constant:
            continue
        readers = (user for value in gone.outputs for user in before.consumers.get(value, ()))
        taken = list(dict.fromkeys(kernel for user in readers for kernel in holders.get(user, ())))
        if taken:
            holders[gone.name] = taken
            for kernel in taken:
                covers[kernel] = (*covers[kernel], gone.name)


def compose(
    first: Mapping[str, tuple[str, ...]], second: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Covers through a graph in between: ``second`` maps to its nodes, ``first`` from them."""
    return {
        kernel: tuple(dict.fromkeys(node for middle in middles for node in first.get(middle, ())))
        for kernel, middles in second.items()
    }


def has_layout_nodes(graph: FlatGraph) -> bool:
    """Whether the blocked-layout rewrite ran, which renames values."""
    return any(node.domain == _NCHWC for node in graph.nodes.values())


def named_node(before: FlatGraph, kernel: str) -> str:
    """The node that a kernel's name alone points to, or an empty text."""
    if kernel in before.nodes or kernel in before.parent:
        return before.top(kernel)
    return (
        before.producer.get(kernel.removesuffix(_NCHWC_SUFFIX), "") if kernel.endswith(_NCHWC_SUFFIX) else ""
    )


def _owners(before: FlatGraph, after: FlatGraph) -> dict[str, str]:
    found: dict[str, str] = {}
    for kernel in after.nodes.values():
        node = named_node(before, kernel.name)
        if node:
            found[kernel.name] = node
    return found


def _aliases(before: FlatGraph, after: FlatGraph, owner: Mapping[str, str]) -> dict[str, str]:
    """Which value of the earlier graph a value of the later one holds."""
    known = before.given | set(before.producer)
    values = (after.given | set(after.producer)) & known
    alias = {value: value for value in values}
    moves = [node for node in after.nodes.values() if node.op in _REORDERS and node.domain == _NCHWC]
    pairs = [(after.nodes[kernel], before.nodes[node]) for kernel, node in owner.items()]
    pairs = [(late, early) for late, early in pairs if late.op == early.op]
    changed = True
    while changed:
        size = len(alias)
        for move in moves:
            _same(alias, move.inputs[0], move.outputs[0])
        for late, early in pairs:
            for one, other in zip(late.inputs, early.inputs, strict=False):
                if one and other and one not in after.initializers:
                    alias.setdefault(one, other)
        if len(alias) == size:
            # Only now: a later rewrite may have put more nodes behind the one whose name was kept.
            for late, early in pairs:
                for one, other in zip(late.outputs, early.outputs, strict=False):
                    if one not in alias:
                        alias[one] = other
        changed = len(alias) != size
    return alias


def _same(alias: dict[str, str], one: str, other: str) -> None:
    if one in alias:
        alias.setdefault(other, alias[one])
    elif other in alias:
        alias[one] = alias[other]


def _lend(after: FlatGraph, alias: Mapping[str, str], covers: dict[str, tuple[str, ...]]) -> None:
    """Give inserted nodes (layout moves, casts, parts of an expanded function) a neighbour's nodes.

    A node whose result has no name in the earlier graph prepares something for its consumers; one
    whose result has such a name finishes what its producer began.
    """
    for kernel in reversed(list(after.nodes.values())):
        if not covers[kernel.name] and not any(value in alias for value in kernel.outputs):
            users = [user for value in kernel.outputs for user in after.consumers.get(value, ())]
            covers[kernel.name] = _union(covers, users)
    for kernel in after.nodes.values():
        if not covers[kernel.name]:
            makers = [after.producer[value] for value in kernel.inputs if value in after.producer]
            covers[kernel.name] = _union(covers, makers)
    for kernel in reversed(list(after.nodes.values())):
        if not covers[kernel.name]:
            users = [user for value in kernel.outputs for user in after.consumers.get(value, ())]
            covers[kernel.name] = _union(covers, users)


def _union(covers: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node for name in names for node in covers[name]))
