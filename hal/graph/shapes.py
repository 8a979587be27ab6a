"""What is known of a graph's values without running it: shapes, types, small constants, trips of loops.

onnx infers the shapes of whole models, but gives up where a shape is computed in a way that its data
propagation does not follow. Once every input is bound, most such shapes are constants: here each node whose
inputs are known small tensors is computed by hal's reference, and onnx's inference of single nodes is fed
with the results.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir

from hal.graph import contrib_shapes, nested
from hal.graph.reference.evaluator import ReferenceUnavailable, reference_outputs
from hal.tensor import Array

#: Tensors with more elements are not computed: shapes, limits and sizes are far smaller.
MAX_ELEMENTS = 1024
#: The same inputs give other values each time, so nothing can be computed beforehand.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
#: A step of shape arithmetic takes far less; a loop in a constant's way must not hold a profile up.
_LIMIT_S = 5.0
_NOTHING: Mapping[ir.Value, ir.Value] = MappingProxyType({})


class Known:
    """Shapes, types and constants of the values of a bound graph, subgraphs included.

    Values are told apart by identity, as in onnx-ir; names may be used twice in nested graphs.
    """

    def __init__(self) -> None:
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self._shapes: dict[ir.Value, tuple[int, ...]] = {}
        self._constants: dict[ir.Value, Array] = {}
        self._fixed: set[ir.Value] = set()
        self._trips: dict[ir.Node, int] = {}
        self._taken: dict[ir.Node, ir.Graph] = {}

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Element type, None where unknown or not a tensor."""
        return self._dtypes.get(value)

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Sizes, None where any is unknown."""
        return self._shapes.get(value)

    def n_elements(self, value: ir.Value) -> int | None:
        """Number of elements, None where a size is unknown."""
        shape = self._shapes.get(value)
        return None if shape is None else int(np.prod(shape, dtype=object))

    def n_bytes(self, value: ir.Value) -> int | None:
        """Bytes at its own type, types below a byte packed; None where unknown, and for strings."""
        count, dtype = self.n_elements(value), self._dtypes.get(value)
        if count is None or dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED):
            return None
        return -(-count * int(dtype.bitwidth) // 8)

    def constant(self, value: ir.Value) -> Array | None:
        """The value itself, where it is the same in each run and has at most ``MAX_ELEMENTS`` elements."""
        return self._constants.get(value)

    def is_fixed(self, value: ir.Value) -> bool:
        """Whether it is the same in each run: weights, and what follows from them and the bound shapes."""
        return value in self._fixed

    def trips(self, node: ir.Node) -> int | None:
        """How often the body of a Loop or Scan runs, None where that depends on values."""
        return self._trips.get(node)

    def taken(self, node: ir.Node) -> ir.Graph | None:
        """The branch that an If takes each time, None where that depends on values."""
        return self._taken.get(node)


def known(model: ir.Model) -> Known:
    """Find out what can be known of a model; it is not changed.

    Args:
        model: With its inputs' shapes bound; what depends on a free dimension stays unknown.
    """
    walk = Walk(model)
    walk.graph(model.graph)
    return walk.found


@functools.cache
def schema_of(domain: str, op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """An operator's schema at an op set version, None for operators that onnx does not define."""
    domain = "" if domain == "ai.onnx" else domain
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


class Walk:
    """Goes through the nodes in order, and into their graphs.

    Attributes:
        found: What is known so far.
        opset: Version of the default operator set.
    """

    def __init__(self, model: ir.Model) -> None:
        self.found = Known()
        self._opsets = dict(model.opset_imports)
        self._opsets.setdefault("", self._opsets.get("ai.onnx", 1))
        self._imports = [onnx.helper.make_opsetid(name, number) for name, number in self._opsets.items()]
        self.opset = self._opsets[""]

    def graph(self, graph: ir.Graph, like: Mapping[ir.Value, ir.Value] = _NOTHING) -> None:
        """Find out about a graph's values, anew where it was walked before.

        Args:
            graph: The graph.
            like: Inputs of it that have the type and shape of another value.
        """
        for value in graph.initializers.values():
            self._declared(value)
            self._weight(value)
        for value in graph.inputs:
            self._declared(value)
            if value in like:
                self.set(value, self.found.dtype(like[value]), self.found.shape(like[value]))
        for node in graph:
            self._node(node)

    def set(self, value: ir.Value, dtype: ir.DataType | None, shape: Sequence[int] | None) -> None:
        """Note what is known of a value; None changes nothing."""
        if dtype is not None:
            self.found._dtypes[value] = dtype
        if shape is not None and all(size >= 0 for size in shape):
            self.found._shapes[value] = tuple(int(size) for size in shape)

    def alias(self, value: ir.Value, source: ir.Value) -> None:
        """Note that a value is another one."""
        self.set(value, self.found.dtype(source), self.found.shape(source))
        if source in self.found._constants:
            self.found._constants[value] = self.found._constants[source]
        if source in self.found._fixed:
            self.found._fixed.add(value)

    def set_trips(self, node: ir.Node, trips: int) -> None:
        """Note how often a body runs."""
        self.found._trips[node] = trips

    def set_taken(self, node: ir.Node, branch: ir.Graph) -> None:
        """Note which branch is taken each time."""
        self.found._taken[node] = branch

    def _declared(self, value: ir.Value) -> None:
        """Take over what the file, or inference of the whole model, says, and nothing else."""
        self.found._shapes.pop(value, None)
        self.found._constants.pop(value, None)
        self.found._fixed.discard(value)
        if value.const_value is not None:
            self.set(value, value.const_value.dtype, value.const_value.shape.numpy())
        elif value.type is None or isinstance(value.type, ir.TensorType):
            static = value.shape is not None and value.shape.is_static()
            self.set(value, value.dtype, value.shape.numpy() if static and value.shape is not None else None)

    def _weight(self, value: ir.Value) -> None:
        self.found._fixed.add(value)
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:  # strings, sparse tensors
            return
        self.set(value, tensor.dtype, tensor.shape.numpy())
        if isinstance(tensor, ir.ExternalTensor) and not os.path.isfile(tensor.path):
            return  # read for planning, without its weights
        if tensor.size <= MAX_ELEMENTS and tensor.dtype != ir.DataType.STRING:
            self.found._constants[value] = tensor.numpy()

    def _node(self, node: ir.Node) -> None:
        for value in node.outputs:
            self._declared(value)
        standard = node.domain in ("", "ai.onnx")
        if standard and node.op_type == "Constant":
            self._weight(node.outputs[0])
            return
        if standard and node.op_type in nested.RULES:
            nested.RULES[node.op_type](self, node)
        elif not all(value in self.found._shapes for value in node.outputs if value.name):
            self._infer(node)
        self._fold(node)

    # --- one node --------------------------------------------------------------------------------

    def _infer(self, node: ir.Node) -> None:
        schema = schema_of(node.domain, node.op_type, self._opsets.get(node.domain, 1))
        proto = _proto(node)
        if node.domain == "com.microsoft" and node.op_type in contrib_shapes.EQUIVALENT:
            op_type, n_inputs = contrib_shapes.EQUIVALENT[node.op_type]
            last = node.attributes.get("channels_last")
            if last is None or not last.as_int():
                schema = schema_of("", op_type, self.opset)
                known_here = (
                    [] if schema is None else [a for a in proto.attribute if a.name in schema.attributes]
                )
                proto = onnx.helper.make_node(op_type, proto.input[:n_inputs], proto.output)
                proto.attribute.extend(known_here)
        if schema is None:
            inferred = contrib_shapes.infer(node, self.found)
            for output, (kind, shape) in zip(node.outputs, inferred, strict=False):
                self.set(output, kind, shape)
            return
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in node.inputs:
            if value is None or not value.name:
                continue
            dtype = self.found.dtype(value)
            if dtype is None:
                return
            types[value.name] = onnx.helper.make_tensor_type_proto(dtype.value, self._sizes(value))
            constant = self.found.constant(value)
            if constant is not None:
                data[value.name] = ir.serde.serialize_tensor(ir.tensor(constant, dtype, name=value.name))
        try:
            given = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self._imports
            )
        except Exception:  # noqa: BLE001  onnx raises many kinds; a shape it cannot tell stays unknown
            return
        for output in node.outputs:
            told = given.get(str(output.name))
            if told is None or not told.HasField("tensor_type"):
                continue
            element, dims = told.tensor_type.elem_type, told.tensor_type.shape.dim
            static = told.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
            self.set(
                output,
                ir.DataType(element) if element else None,
                [dim.dim_value for dim in dims] if static else None,
            )

    def _sizes(self, value: ir.Value) -> Sequence[int | str | None] | None:
        """What inference may be told: all sizes, or those of the declared ones that are known."""
        shape = self.found.shape(value)
        if shape is not None or value.shape is None:
            return shape
        return [size if isinstance(size, int) else None for size in value.shape.dims]

    def _fold(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None]
        standard = node.domain in ("", "ai.onnx")
        if standard and node.op_type in ("Shape", "Size") and self.found.shape(inputs[0]) is not None:
            self.found._fixed.update(node.outputs)
            shape = np.array(self.found.shape(inputs[0]), np.int64)
            if node.op_type == "Size":
                shape = np.array(self.found.n_elements(inputs[0]), np.int64)
            else:
                start, end = (node.attributes.get(name) for name in ("start", "end"))
                shape = shape[start.as_int() if start else 0 : end.as_int() if end else None]
            self.found._constants[node.outputs[0]] = shape
            self.set(node.outputs[0], ir.DataType.INT64, shape.shape)
            return
        read = [*inputs, *nested.captured(node)]
        if not self._is_pure(node) or not all(value in self.found._fixed for value in read):
            return
        self.found._fixed.update(node.outputs)
        sizes = [self.found.n_elements(value) for value in node.outputs if value.name]
        # What is found in a small tensor is small, however much it is.
        finds = node.op_type in ("NonZero", "Compress", "Unique")
        small = all(finds if size is None else size <= MAX_ELEMENTS for size in sizes)
        if (
            small
            and all(value in self.found._constants for value in inputs)
            and not any(nested.subgraphs(node))
        ):
            self._compute(node, inputs)

    def _is_pure(self, node: ir.Node) -> bool:
        """Whether the same inputs give the same outputs; nobody knows of operators that nobody knows."""
        schema = schema_of(node.domain, node.op_type, self._opsets.get(node.domain, 1))
        if node.op_type in RANDOM or (schema is None and node.domain not in ("", "com.microsoft")):
            return False
        return all(self._is_pure(inner) for graph in nested.subgraphs(node) for inner in graph)

    def _compute(self, node: ir.Node, inputs: Sequence[ir.Value]) -> None:
        graph = onnx.GraphProto(name="one", node=[_proto(node)])
        for value in dict.fromkeys(inputs):
            kind = (self.found._dtypes[value].value, self.found._shapes[value])
            graph.input.append(onnx.helper.make_tensor_value_info(str(value.name), *kind))
        for value in node.outputs:
            if value.name:
                graph.output.append(onnx.helper.make_empty_tensor_value_info(value.name))
        model = onnx.ModelProto(ir_version=10, graph=graph, opset_import=self._imports)
        given = {str(value.name): self.found._constants[value] for value in inputs}
        try:
            answers = reference_outputs(model, given, limit_s=_LIMIT_S)
        except ReferenceUnavailable:
            return
        for value in node.outputs:
            if value.name:
                self.found._constants[value] = answers[value.name]
                self.set(value, ir.DataType.from_numpy(answers[value.name].dtype), answers[value.name].shape)


def _proto(node: ir.Node) -> onnx.NodeProto:
    proto = ir.serde.serialize_node(node)
    # Stack traces are long and say nothing of shapes.
    del proto.metadata_props[:]
    return proto
