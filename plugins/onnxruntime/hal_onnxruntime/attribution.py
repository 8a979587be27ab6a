"""From the runtime's kernels back to the graph's nodes, by names and the values at their boundary.

ONNX Runtime rewrites a graph before it runs: it folds, fuses, reorders layouts and moves
transposes. It keeps the names of values that cross the boundary of what it rewrites, and the name
of one of the nodes it fuses. From both, the nodes of one graph that a node of a later graph
computes can be read off.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import msgspec
import onnx_ir as ir

_NCHWC = "com.microsoft.nchwc"
# What the rewrites append to the name of a node or value that they replace: a counter, the name of a fusion,
# the layout, and which side of a moved pair of QuantizeLinear and DequantizeLinear it lies on.
# Source: Graph::GenerateNodeName and the transformers in ONNX Runtime's optimizer folder.
_SUFFIX = re.compile(r"(_token_\d+|/duplicated|/\w+Fusion|_nchwc|_pre_q|_q_to_dq|_post_dq|_q|_dq)$")
# What lies between an operator and the QuantizeLinear that both are fused with.
_CLAMPS = ("Relu", "Clip")
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
    owned: dict[str, set[str]] = {}
    for kernel, node in owner.items():
        owned.setdefault(node, set()).add(kernel)
    constant = before.constant(after.nodes)
    there = {alias[value] for value in alias if value in after.producer or value in after.given}
    order = {name: position for position, name in enumerate(before.nodes)}
    covers: dict[str, tuple[str, ...]] = {}
    for late in after.nodes.values():
        found: set[str] = {owner[late.name]} if late.name in owner else set()
        results = [alias[value] for value in late.outputs if value in alias]
        if late.name in owner:
            # A fusion keeps the name of one of its nodes: what feeds that node lies in its region too.
            results.extend(before.nodes[owner[late.name]].outputs)
        pending = list(results)
        seen: set[str] = set()
        while pending:
            value = pending.pop()
            made_by = before.producer.get(value)
            if value in seen or made_by is None or (value in there and value not in results):
                continue
            node = made_by
            seen.add(value)
            if node in owned and late.name not in owned[node]:
                continue
            if node in constant and node not in found:
                continue
            found.add(node)
            pending.extend(before.nodes[node].inputs)
        covers[late.name] = tuple(sorted(found, key=order.__getitem__))
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
    for name in _stems(kernel):
        if name in before.nodes or name in before.parent:
            return before.top(name)
        if name in before.producer and name != kernel:
            return before.producer[name]
    return ""


def _stems(name: str) -> Iterable[str]:
    """A name, then what is left of it when suffixes are taken off, one by one."""
    yield name
    while (stem := _SUFFIX.sub("", name)) != name:
        name = stem
        yield name


def _owners(before: FlatGraph, after: FlatGraph) -> dict[str, str]:
    found: dict[str, str] = {}
    for kernel in after.nodes.values():
        # The result of a fusion with QuantizeLinear is a new value, named after the node.
        named = [value for value in kernel.outputs if value in before.nodes and value not in before.producer]
        node = named_node(before, kernel.name) or (named[0] if named else "")
        if node:
            found[kernel.name] = node
    return found


def _aliases(before: FlatGraph, after: FlatGraph, owner: Mapping[str, str]) -> dict[str, str]:
    """Which value of the earlier graph a value of the later one holds."""
    known = before.given | set(before.producer)
    values = (after.given | set(after.producer)) & known
    alias = {value: value for value in values}
    for value in after.producer:
        stem = next((name for name in _stems(value) if name in before.producer), None)
        if value not in alias and stem is not None and value not in before.nodes:
            alias[value] = stem
    for kernel, node in owner.items():
        quantized = _quantized(before, after, node, owner)
        if quantized is not None and len(after.nodes[kernel].outputs) == 1:
            alias.setdefault(after.nodes[kernel].outputs[0], quantized)
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


def _quantized(before: FlatGraph, after: FlatGraph, node: str, owner: Mapping[str, str]) -> str | None:
    """The value that a node's result becomes in QuantizeLinear, where the rewrites fused both."""
    kept = set(owner.values())
    value = before.nodes[node].outputs[0] if before.nodes[node].outputs else ""
    while True:
        readers = before.consumers.get(value, [])
        if len(readers) != 1 or readers[0] in kept or value in before.outputs:
            return None
        reader = before.nodes[readers[0]]
        if reader.op not in ("QuantizeLinear", *_CLAMPS):
            return None
        value = reader.outputs[0]
        if reader.op == "QuantizeLinear":
            return None if value in after.producer else value


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
