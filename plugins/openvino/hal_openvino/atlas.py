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
from hal_openvino.passthrough import maker

#: A token, and what a transformation may have appended to it (``_flatten_reshape``, ``/transpose_b``).
TOKEN = re.compile(r"hal(\d+)(?!\d)")
# Operations whose result differs from run to run.
_RANDOM = ("Random", "Multinomial")


class Atlas(msgspec.Struct, frozen=True):
    """Names of a graph in both worlds, and as much of its structure as attribution needs.

    Attributes:
        names: By token number: the name that OpenVINO's reader gave the operation.
        owners: By token number: the ONNX nodes whose result it computes.
        operators: By node, in the order of the graph: its operator.
        consumers: By node: the nodes that read its outputs.
        constant: Nodes whose result is known while compiling, or which OpenVINO's reader left out.
    """

    names: tuple[str, ...]
    owners: tuple[tuple[str, ...], ...]
    operators: dict[str, str]
    consumers: dict[str, tuple[str, ...]]
    constant: frozenset[str]

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
    makers = {str(value.name): maker(value) for node in graph.nodes.values() for value in node.outputs}
    producers = {name: str(node.name) for name, node in makers.items() if node is not None}
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
    constant = _constant(graph, operations, owned)
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
        operators={name: operator(node) for name, node in graph.nodes.items()},
        consumers=_consumers(graph),
        constant=constant,
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


def reads(node: ir.Node) -> Iterable[ir.Value]:
    """What a node reads, from outside its subgraphs too."""
    yield from (value for value in node.inputs if value is not None)
    for inner in _inside(node):
        yield from (value for value in inner.inputs if value is not None)


def _consumers(graph: Graph) -> dict[str, tuple[str, ...]]:
    producers = {id(value): name for name, node in graph.nodes.items() for value in node.outputs}
    found: dict[str, dict[str, None]] = {name: {} for name in graph.nodes}
    for name, node in graph.nodes.items():
        for value in reads(node):
            producer = producers.get(id(value))
            if producer is not None:
                found[producer][name] = None
    return {name: tuple(readers) for name, readers in found.items()}


def _constant(graph: Graph, operations: list[Any], owned: dict[str, tuple[str, ...]]) -> frozenset[str]:
    """Nodes all of whose operations depend on weights and known shapes only."""
    known: set[str] = set()
    varies: set[str] = set()
    for operation in operations:
        friendly, kind = operation.get_friendly_name(), operation.get_type_name()
        sources = [port.get_source_output() for port in operation.inputs()]
        fixed = (
            all(source.get_partial_shape().is_static for source in sources)
            if kind == "ShapeOf"
            else bool(sources) and all(source.get_node().get_friendly_name() in known for source in sources)
        )
        if kind == "Constant" or (fixed and not kind.startswith(_RANDOM)):
            known.add(friendly)
        else:
            varies.update(owned[friendly])
    return frozenset(name for name in graph.nodes if name not in varies)
