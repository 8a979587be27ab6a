"""Small ONNX models for the tests of the bridge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto as T
from onnx import helper, numpy_helper

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    """float32[shape] from a fixed sequence."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str]]],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> ir.Model:
    """A model of a few nodes."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    made: ir.Model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=9))
    return made


def single(op: str, array: np.ndarray, opset: int, *rest: np.ndarray, **attributes: object) -> ir.Model:
    """A model of one node, all inputs but the first constant."""
    names = [f"c{i}" for i in range(len(rest))]
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    node = helper.make_node(op, ["x", *names], ["y"], name="node", **attributes)
    return model([node], {"x": (dtype, array.shape)}, ["y"], dict(zip(names, rest, strict=True)), opset=opset)


def conditional(condition: bool | None) -> ir.Model:
    """`x @ w` or `x - 1`; the condition is an input when None."""
    branches = {}
    for name, op, other in (("then_branch", "MatMul", "w"), ("else_branch", "Sub", "one")):
        node = helper.make_node(op, ["x", other], [f"{name}_out"], name=f"{name}_node")
        out = helper.make_empty_tensor_value_info(f"{name}_out")
        branches[name] = helper.make_graph([node], name, [], [out])
    nodes = [
        helper.make_node("If", ["condition"], ["chosen"], name="choice", **branches),
        helper.make_node("Neg", ["chosen"], ["y"], name="minus"),
    ]
    inputs: dict[str, tuple[int, Sequence[int | str]]] = {"x": (T.FLOAT, [3, 3])}
    constants = {"w": floats(3, 3), "one": np.ones((3, 3), np.float32)}
    if condition is None:
        inputs["condition"] = (T.BOOL, [])
    else:
        constants["condition"] = np.array(condition)
    return model(nodes, inputs, ["y"], constants)
