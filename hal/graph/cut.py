"""Parts of a graph as graphs of their own: prefixes, and sets of nodes whose inputs are given.

Nothing is computed and the graph that is cut stays as it is; weights are shared with it, not copied.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from hal.graph import nested
from hal.graph.model import Graph
from hal.graph.shapes import Known, known, schema_of
from hal.tensor import Array

#: Types that numpy's files hold; others are given as a type that holds all their values, and cast.
_STORABLE = frozenset(
    {
        *(ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
        *(ir.DataType.COMPLEX64, ir.DataType.COMPLEX128),
    }
)


class Cutter:
    """Cuts one graph, again and again.

    Args:
        graph: With no free dimensions but those that are to be free in its parts too.

    Attributes:
        graph: The graph.
        nodes: Names of its nodes, in topological order.
        outputs: Names of the graph's outputs that a node computes.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = tuple(graph.nodes)
        self._position = {name: index for index, name in enumerate(self.nodes)}
        self._is_free = bool(graph.unbound)
        self._seen: dict[str, tuple[int, ...]] = {}
        self._values = {str(v.name): v for v in graph.model.graph.inputs}
        self._values |= {str(v.name): v for v in graph.model.graph.initializers.values()}
        self._producers: dict[str, str] = {}
        for name, node in graph.nodes.items():
            for value in node.outputs:
                if value.name:
                    self._values[value.name] = value
                    self._producers[value.name] = name
        self.outputs = tuple(
            str(value.name) for value in graph.model.graph.outputs if value.name in self._producers
        )

    # --- what there is -----------------------------------------------------------------------------

    @functools.cached_property
    def _known(self) -> Known:
        # Inferring shapes anew takes long; a plan of one partition needs none.
        return known(self.graph.model)

    @functools.cached_property
    def values(self) -> Mapping[str, str]:
        """Name of each value that can be an output, to the node that computes it, in the order of the nodes.

        Sequences, optional values, strings and values of unknown type cannot; values of ``Constant`` nodes
        are weights.
        """
        return {
            value: node
            for value, node in self._producers.items()
            if self.graph.nodes[node].op_type != "Constant" and self._is_plain(value)
        }

    @functools.cached_property
    def _reads(self) -> dict[str, tuple[ir.Value, ...]]:
        return {
            name: tuple(
                dict.fromkeys([value for value in node.inputs if value is not None] + nested.captured(node))
            )
            for name, node in self.graph.nodes.items()
        }

    def reads(self, node: str) -> tuple[str, ...]:
        """Names of the values a node reads, those its subgraphs take from around them among them."""
        return tuple(str(value.name) for value in self._reads[node])

    def writes(self, node: str) -> tuple[str, ...]:
        """Names of the values a node computes."""
        return tuple(value.name for value in self.graph.nodes[node].outputs if value.name)

    def producer(self, value: str) -> str | None:
        """The node that computes a value; None for inputs and weights."""
        return self._producers.get(value)

    def position(self, node: str) -> int:
        """A node's place in the order, from 0."""
        return self._position[node]

    def n_bytes(self, value: str) -> int | None:
        """Bytes of a value, None where its shape is unknown."""
        return self._known.n_bytes(self._values[value])

    def is_fixed(self, node: str) -> bool:
        """Whether a node computes the same in each run, from weights and bound shapes alone."""
        return all(self._known.is_fixed(self._values[value]) for value in self.writes(node))

    def ordered(self, nodes: Iterable[str]) -> list[str]:
        """Nodes in topological order."""
        return sorted(nodes, key=self._position.__getitem__)

    def ancestors(self, values: Iterable[str], within: Collection[str] | None = None) -> set[str]:
        """The nodes that values depend on, their own among them.

        Args:
            values: Names of values.
            within: Go no further than these nodes; None for all.
        """
        found: set[str] = set()
        waiting = [node for value in values if (node := self._producers.get(value)) is not None]
        while waiting:
            node = waiting.pop()
            if node in found or (within is not None and node not in within):
                continue
            found.add(node)
            waiting += [n for value in self.reads(node) if (n := self._producers.get(value)) is not None]
        return found

    def frontier(self, before: Sequence[str], after: Sequence[str], ends: Collection[str]) -> list[str]:
        """The values that cross a cut: computed before it, and read after it or wanted at the end.

        Args:
            before: Nodes before the cut, in topological order.
            after: Nodes after it.
            ends: Values wanted at the end.

        Returns:
            Those of them that can be outputs, in topological order.
        """
        read = {value for node in after for value in self.reads(node)} | set(ends)
        return [v for node in before for v in self.writes(node) if v in read and v in self.values]

    def layers(self, values: Sequence[str]) -> list[list[str]]:
        """Nodes by their distance from values, the nodes that compute these first.

        Nodes that compute the same in each run are left out: a part takes them along where it needs them.
        """
        seen: set[str] = set()
        layer = [node for value in values if (node := self._producers.get(value)) is not None]
        found = []
        while layer := [n for n in dict.fromkeys(layer) if n not in seen and not self.is_fixed(n)]:
            seen.update(layer)
            found.append(layer)
            layer = [
                producer
                for node in layer
                for value in self.reads(node)
                if (producer := self._producers.get(value)) is not None
            ]
        return found

    def learn(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take shapes that were seen in a run for values whose shape cannot be inferred.

        Parts that are cut afterwards state them at their ends, as a file must.
        """
        self._seen.update(shapes)

    # --- cuts --------------------------------------------------------------------------------------

    def prefix(self, outputs: Sequence[str]) -> Graph:
        """The graph that computes these values from the graph's own inputs, and nothing else.

        Args:
            outputs: Names out of :attr:`values`, each once.

        Raises:
            ValueError: One of them cannot be an output.
        """
        return self._cut(self.ancestors(outputs), outputs, {}, name=f"{self.graph.name}_prefix")

    def part(self, nodes: Collection[str], outputs: Sequence[str], *, storable: bool = True) -> Graph:
        """These nodes alone, with inputs for what they read from others.

        Weights stay weights. Small values that are the same in each run (shapes, limits) become weights, and
        nodes that compute larger ones from weights (dequantization) come along. So do nodes whose results
        cannot be inputs, such as sequences.

        Args:
            nodes: Names of nodes.
            outputs: Names out of :attr:`values` that the nodes compute, each once.
            storable: Give inputs of types that numpy's files do not hold (bfloat16) as wider ones that are
                cast; else they keep the graph's types.

        Raises:
            ValueError: One of the outputs cannot be an output.
        """
        taken, constants = self.along(nodes)
        return self._cut(taken, outputs, constants, name=f"{self.graph.name}_part", make_storable=storable)

    def along(
        self, nodes: Collection[str], homeless: Collection[str] = ()
    ) -> tuple[set[str], Mapping[str, Array]]:
        """What :meth:`part` makes of nodes: they, those that come along, and the values that become weights.

        Args:
            nodes: Names of nodes.
            homeless: Nodes that come along wherever one of their results is read.
        """
        taken, constants = set(nodes), {}
        waiting = list(taken)
        while waiting:
            for value in self.reads(waiting.pop()):
                producer = self._producers.get(value)
                if producer is None or producer in taken:
                    continue
                constant = self._known.constant(self._values[value])
                if constant is not None:
                    constants[value] = constant
                elif (
                    producer in homeless
                    or self._known.is_fixed(self._values[value])
                    or not self._is_plain(value)
                ):
                    taken.add(producer)
                    waiting.append(producer)
        return taken, {value: a for value, a in constants.items() if self._producers[value] not in taken}

    def constant(self, value: str) -> Array | None:
        """A weight, or the value of a ``Constant`` node; None for anything else."""
        held = self._values[value]
        if held.producer() is not None and self.graph.nodes[self._producers[value]].op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(held)
        return None if tensor is None else tensor.numpy()

    def is_sized(self, value: str) -> bool:
        """Whether type and sizes of a value are known, as they must be at the ends of a compiled part.

        Where the graph has free dimensions, the rank is enough.
        """
        held = self._values[value]
        is_known = self._known.shape(held) is not None or (self._is_free and held.shape is not None)
        return is_known and self._is_plain(value)

    def _is_plain(self, value: str) -> bool:
        held = self._values[value]
        if self._known.dtype(held) in (None, ir.DataType.UNDEFINED, ir.DataType.STRING):
            return False
        return _is_tensor(held, self.graph.model.opset_imports)

    def _cut(
        self,
        nodes: set[str],
        outputs: Sequence[str],
        constants: Mapping[str, Array],
        *,
        name: str,
        make_storable: bool = False,
    ) -> Graph:
        if wrong := [output for output in outputs if output not in self.values]:
            raise ValueError(
                f"{wrong} cannot be outputs of a part of {self.graph.name!r}; expected tensors that a node "
                "computes"
            )
        read = {str(value.name): None for node in self.ordered(nodes) for value in self._reads[node]}
        weights = self.graph.model.graph.initializers
        inputs = [value for value in read if value not in weights and self._producers.get(value) not in nodes]
        source = self.graph.model
        extracted = ir.convenience.extract(
            source.graph, [self._values[v] for v in inputs], [self._values[v] for v in outputs]
        )
        for value in (*extracted.inputs, *extracted.outputs):
            self._declare(value, self._values[str(value.name)])
        for value in [value for node in extracted.all_nodes() for value in node.outputs]:
            if not _is_tensor(value, source.opset_imports):
                value.type = value.shape = None
        for value in [value for value in extracted.inputs if value.name in constants]:
            extracted.inputs.remove(value)
            value.const_value = ir.tensor(constants[str(value.name)], value.dtype, name=value.name)
            extracted.initializers.add(value)
        extracted.name = name
        model = ir.Model(
            extracted,
            ir_version=source.ir_version,
            producer_name="hal",
            functions=[function.clone() for function in source.functions.values()],
        )
        if make_storable:
            _make_storable(model)
        signature = Graph(model, name=name, digest="").signature
        ends = [[str(spec) for spec in specs] for specs in (signature.inputs, signature.outputs)]
        key = json.dumps([self.graph.digest, self.ordered(nodes), ends, sorted(constants)])
        return Graph(model, name=name, digest=hashlib.sha256(key.encode()).hexdigest())

    def _declare(self, value: ir.Value, original: ir.Value) -> None:
        """Give an end of a part its type and shape: a file must state them."""
        dtype, shape = self._known.dtype(original), self._known.shape(original)
        if shape is None:
            shape = self._seen.get(str(original.name))
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        if shape is not None:
            value.shape = ir.Shape(shape)


def _is_tensor(value: ir.Value, opsets: Mapping[str, int]) -> bool:
    """Whether a value is a tensor. Its type may lie: inference gives sequences that of their elements."""
    node, index = value.producer(), value.index() or 0
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return False
    if node is None:
        return True
    standard = node.domain in ("", "ai.onnx")
    if standard and node.op_type == "Identity" and node.inputs[0] is not None:
        return _is_tensor(node.inputs[0], opsets)
    if standard and node.op_type == "If":
        return all(_is_tensor(branch.outputs[index], opsets) for branch in nested.subgraphs(node))
    if standard and node.op_type == "Loop":  # the body's first output is the condition
        return all(_is_tensor(body.outputs[index + 1], opsets) for body in nested.subgraphs(node))
    schema = schema_of(node.domain, node.op_type, opsets.get(node.domain, 1))
    if schema is None or not schema.outputs:
        return True
    types = schema.outputs[min(index, len(schema.outputs) - 1)].types
    return all(kind.startswith("tensor(") for kind in types)


def storable(array: Array) -> Array:
    """An array as the inputs of :meth:`Cutter.part` take it: of a type that numpy's files hold."""
    name = array.dtype.name
    if array.dtype.kind != "V" and not name.startswith(("bfloat", "float8", "float4", "int", "uint")):
        return array
    if name.startswith(("int", "uint")):
        wide = "int8" if name.startswith("int") else "uint8"
        return array.astype(wide) if name in ("int2", "int4", "uint2", "uint4") else array
    return array.astype(np.float32)


def _make_storable(model: ir.Model) -> None:
    graph = model.graph
    for index, value in enumerate(list(graph.inputs)):
        if value.dtype is None or value.dtype in _STORABLE:
            continue
        wide = ir.DataType.FLOAT
        if value.dtype in (ir.DataType.INT4, ir.DataType.INT2):
            wide = ir.DataType.INT8
        elif value.dtype in (ir.DataType.UINT4, ir.DataType.UINT2):
            wide = ir.DataType.UINT8
        given = ir.Value(name=value.name, type=ir.TensorType(wide), shape=value.shape)
        graph.inputs[index] = given
        cast = ir.node("Cast", [given], {"to": value.dtype.value}, name=f"{value.name}_as_given")
        cast.outputs[0].name = f"{value.name}_narrowed"
        cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        graph.insert_before(graph[0], cast)


__all__ = ["Cutter", "storable"]
