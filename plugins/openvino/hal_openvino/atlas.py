"""Which node of the ONNX graph each OpenVINO operation comes from.

OpenVINO's reader keeps ONNX names only where it can, and its fusions drop more of them. So every
operation is given a token as its friendly name before compiling; OpenVINO carries friendly names
through its fusions into ``originalLayersNames`` of the runtime model, where tokens are found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
import onnx_ir as ir

from hal.graph.model import Graph

#: A token, and what a transformation may have appended to it (``_flatten_reshape``, ``/transpose_b``).
TOKEN = re.compile(r"hal(\d+)(?!\d)")
#: Nodes that only rename or reinterpret a tensor: without a kernel of their own they cost nothing.
_VIEWS = frozenset({"Identity", "Dropout", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"})
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})
_CONTROL = frozenset({"If", "Loop", "Scan"})


class Atlas(msgspec.Struct, frozen=True):
    """Names of a graph in both worlds, and as much of its structure as attribution needs.

    Attributes:
        names: By token number: the name that OpenVINO's reader gave the operation.
        owners: By token number: the ONNX nodes whose result it computes.
        consumers: By node, in the order of the graph: the nodes that read its outputs.
        constant: Nodes that depend on no input of the graph, only on weights and static shapes.
        views: Nodes that only rename or reinterpret a tensor.
    """

    names: tuple[str, ...]
    owners: tuple[tuple[str, ...], ...]
    consumers: dict[str, tuple[str, ...]]
    constant: frozenset[str]
    views: frozenset[str]

    def owners_of(self, name: str) -> tuple[str, ...]:
        """ONNX nodes behind a name that OpenVINO reports; empty where it is OpenVINO's own."""
        token = TOKEN.match(name)
        known = token is not None and int(token[1]) < len(self.owners)
        return self.owners[int(token[1])] if token is not None and known else ()

    def readable(self, name: str) -> str:
        """A reported name with each token replaced by the operation's own name."""
        return TOKEN.sub(
            lambda token: self.names[int(token[1])] if int(token[1]) < len(self.names) else token[0], name
        )


def owners(graph: Graph, operations: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """The ONNX nodes behind each operation of a model as OpenVINO read it, by friendly name.

    An operation with the name of an ONNX tensor belongs to the tensor's producer; one without, which
    the reader added to express a node, belongs to the node that its consumers belong to. Friendly
    names are no evidence: OpenVINO makes up ``Add_3`` as readily as an exporter does.
    """
    ordered = list(operations)
    producers = {str(value.name): name for name, node in graph.nodes.items() for value in node.outputs}
    found: dict[str, tuple[str, ...]] = {}
    for operation in ordered:
        tensors = (tensor for output in operation.outputs() for tensor in output.get_names())
        named = {producers[tensor]: None for tensor in tensors if tensor in producers}
        found[operation.get_friendly_name()] = tuple(named)
    for operation in reversed(ordered):
        friendly = operation.get_friendly_name()
        if found[friendly] or operation.get_type_name() in ("Constant", "Parameter", "Result"):
            continue
        merged: dict[str, None] = {}
        for output in operation.outputs():
            for target in output.get_target_inputs():
                merged.update(dict.fromkeys(found.get(target.get_node().get_friendly_name(), ())))
        found[friendly] = tuple(merged)
    return found


def draw(graph: Graph, model: Any) -> Atlas:
    """Give every operation of a freshly read OpenVINO model its token, and note what it stands for."""
    operations = list(model.get_ordered_ops())
    owned = owners(graph, operations)
    names: list[str] = []
    of_token: list[tuple[str, ...]] = []

    def give(operation: Any, nodes: tuple[str, ...]) -> None:
        names.append(operation.get_friendly_name())
        of_token.append(nodes)
        operation.set_friendly_name(f"hal{len(names) - 1}")
        for body in _bodies(operation):
            for inner in body.get_ordered_ops():
                give(inner, nodes)

    for operation in operations:
        give(operation, owned[operation.get_friendly_name()])
    return Atlas(
        names=tuple(names),
        owners=tuple(of_token),
        consumers=_consumers(graph),
        constant=_constant(graph),
        views=frozenset(name for name, node in graph.nodes.items() if node.op_type in _VIEWS),
    )


def inner_names(graph: Graph) -> dict[str, str]:
    """Names of nodes and tensors inside subgraphs, each with the top-level node around it."""
    found: dict[str, str] = {}
    for name, node in graph.nodes.items():
        for inner in _inside(node):
            found.setdefault(str(inner.name), name)
            for value in inner.outputs:
                found.setdefault(str(value.name), name)
    return found


def inner_operators(node: ir.Node) -> set[str]:
    """Operators used inside a node's subgraphs, written ``Op`` or ``domain.Op``."""
    return {operator(inner) for inner in _inside(node)}


def operator(node: ir.Node) -> str:
    """A node's operator, written ``Op``, or ``domain.Op`` outside the default domain."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _bodies(operation: Any) -> list[Any]:
    kind = operation.get_type_name()
    if kind == "If":
        return [operation.get_function(0), operation.get_function(1)]
    return [operation.get_function()] if kind in ("Loop", "TensorIterator") else []


def _inside(node: ir.Node) -> Iterable[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield from body.all_nodes()


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """What a node reads, from outside its subgraphs too."""
    yield from (value for value in node.inputs if value is not None)
    for inner in _inside(node):
        yield from (value for value in inner.inputs if value is not None)


def _consumers(graph: Graph) -> dict[str, tuple[str, ...]]:
    producers = {id(value): name for name, node in graph.nodes.items() for value in node.outputs}
    found: dict[str, dict[str, None]] = {name: {} for name in graph.nodes}
    for name, node in graph.nodes.items():
        for value in _reads(node):
            producer = producers.get(id(value))
            if producer is not None:
                found[producer][name] = None
    return {name: tuple(readers) for name, readers in found.items()}


def _constant(graph: Graph) -> frozenset[str]:
    known = {id(value) for value in graph.model.graph.initializers.values()}
    found: set[str] = set()
    for name, node in graph.nodes.items():
        if node.op_type in _RANDOM or node.op_type in _CONTROL:
            continue
        told_by_shape = node.op_type in ("Shape", "Size") and all(
            value is not None and value.shape is not None and value.shape.is_static() for value in node.inputs
        )
        if told_by_shape or all(id(value) in known for value in _reads(node)):
            found.add(name)
            known.update(id(value) for value in node.outputs)
    return frozenset(found)
