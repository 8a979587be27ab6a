"""A digest that is equal for nodes that cost the same on one target, in whichever model they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir

from hal.graph.shapes import Known, schema_of

_SECOND_DECIDES = """
    CenterCropPad Compress CumProd CumSum Expand OneHot Pad Pow ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Split
    SplitToSequence Squeeze STFT Tile TopK Trilu Unsqueeze Upsample
"""
#: Inputs whose values, and not only their sizes, say what is to be done.
#: Source: ONNX operator reference.
_DECIDING: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_SECOND_DECIDES.split(), (1,)),
    "AffineGrid": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "NonMaxSuppression": (2,),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
}
#: Of operators that onnx does not define, every constant up to this size that holds integers.
_SMALL = 64


def signature(node: ir.Node, known: Known, opsets: Mapping[str, int]) -> str:
    """The first 32 hexadecimal digits of sha256 over what decides a node's cost.

    That is: the operator and the op set version in which it was defined, its attributes (defaults filled in)
    and subgraphs, types and shapes of inputs and outputs, which inputs are constants, and the values of those
    that say what is to be done, like the sizes of a Resize. Names and the values of weights are left out.

    Args:
        node: The node.
        known: What is known of its graph's values.
        opsets: The model's op set versions by domain.
    """
    text = json.dumps(_describe(node, known, opsets), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _describe(node: ir.Node, known: Known, opsets: Mapping[str, int]) -> dict[str, Any]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = opsets.get(domain, 1)
    schema = schema_of(domain, node.op_type, opset)
    attributes = {name: _attribute(value, known, opsets) for name, value in node.attributes.items()}
    if schema is not None:
        for name, declared in schema.attributes.items():
            if name not in attributes and declared.default_value.type != onnx.AttributeProto.UNDEFINED:
                default = ir.serde.deserialize_attribute(declared.default_value)
                attributes[name] = _attribute(default, known, opsets)
    return {
        "op": node.op_type,
        "domain": domain,
        "since": opset if schema is None else schema.since_version,
        "attributes": attributes,
        "inputs": [
            None
            if value is None
            else [*_tensor(value, known), known.is_fixed(value), _values(node, i, known)]
            for i, value in enumerate(node.inputs)
        ],
        "outputs": [_tensor(value, known) for value in node.outputs],
    }


def _tensor(value: ir.Value, known: Known) -> list[Any]:
    dtype, shape = known.dtype(value), known.shape(value)
    return [None if dtype is None else dtype.name, None if shape is None else list(shape)]


def _values(node: ir.Node, index: int, known: Known) -> Any:
    value = node.inputs[index]
    constant = None if value is None else known.constant(value)
    if constant is None:
        return None
    standard = node.domain in ("", "ai.onnx")
    decides = index in _DECIDING.get(node.op_type, ()) if standard else constant.size <= _SMALL
    if not decides or (not standard and constant.dtype.kind not in "iub"):
        return None
    return constant.tolist()


def _attribute(attribute: ir.Attr, known: Known, opsets: Mapping[str, int]) -> Any:
    if attribute.is_ref():
        return ["ref", attribute.ref_attr_name]
    kind, value = attribute.type, attribute.value
    if kind == ir.AttributeType.GRAPH:
        return _graph(attribute.as_graph(), known, opsets)
    if kind == ir.AttributeType.GRAPHS:
        return [_graph(graph, known, opsets) for graph in attribute.as_graphs()]
    if kind == ir.AttributeType.TENSOR:
        return _content(attribute.as_tensor())
    if kind == ir.AttributeType.TENSORS:
        return [_content(tensor) for tensor in attribute.as_tensors()]
    if kind in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return value
    if kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(value)
    return str(value)  # types and sparse tensors


def _content(tensor: ir.TensorProtocol) -> list[Any]:
    """A tensor is a weight: only its type and sizes count."""
    return [tensor.dtype.name, list(tensor.shape.numpy())]


def _graph(graph: ir.Graph, known: Known, opsets: Mapping[str, int]) -> Any:
    """A subgraph with its values numbered in order of appearance, so that names do not count."""
    numbers: dict[ir.Value, int] = {}

    def number(value: ir.Value | None) -> int | None:
        return None if value is None else numbers.setdefault(value, len(numbers))

    inputs = [number(value) for value in graph.inputs]
    nodes = [
        [_describe(node, known, opsets), [number(v) for v in node.inputs], [number(v) for v in node.outputs]]
        for node in graph
    ]
    return {
        "inputs": inputs,
        "nodes": nodes,
        "outputs": [[number(value), *_tensor(value, known)] for value in graph.outputs],
    }
