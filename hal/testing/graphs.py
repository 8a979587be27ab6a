"""Small graphs by name, each for one way a backend can go wrong. Weights and inputs are deterministic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as Proto
from onnx import helper, numpy_helper

from hal.backend import TensorSpec
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.tensor import Array

_OPSET = 17

#: Shapes for the graphs whose file leaves dimensions free.
_BOUND: Mapping[str, Mapping[str, Sequence[int]]] = {"dynamic_batch": {"x": (3, 8)}}


@functools.cache
def small_graph(name: str) -> Graph:
    """One of :data:`GRAPHS`, loaded, every dimension bound.

    Raises:
        KeyError: There is no such graph.
    """
    return Graph.load(GRAPHS[name](), name=name).bind(_BOUND.get(name, {}))


def example_inputs(graph: Graph, seed: int = 0) -> list[Array]:
    """Inputs by position: normal numbers, integers from 0 to 3, truth values; equal for equal seeds."""
    generator = np.random.default_rng(seed)
    return [_example(spec, generator) for spec in graph.signature.inputs]


def true_outputs(graph: Graph, inputs: Sequence[Array]) -> list[Array]:
    """What the reference answers, by position."""
    named = {spec.name: array for spec, array in zip(graph.signature.inputs, inputs, strict=True)}
    answers = reference_outputs(graph.to_proto(), named)
    return [answers[spec.name] for spec in graph.signature.outputs]


def _example(spec: TensorSpec, generator: np.random.Generator) -> Array:
    shape = tuple(int(size) for size in spec.shape)
    if spec.dtype == "bool":
        return np.asarray(generator.integers(0, 2, shape) > 0)
    if spec.dtype.startswith(("int", "uint")):
        return np.asarray(generator.integers(0, 4, shape)).astype(spec.dtype)
    kind = ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
    return np.asarray(generator.normal(size=shape)).astype(kind)


def _model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, key) for key, array in (weights or {}).items()]
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type.lower()}_{index}"
    graph = helper.make_graph(list(nodes), name, list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", _OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


def _float(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, Proto.FLOAT, shape)


def _weights(*shape: int, seed: int = 1) -> Array:
    # Scaled so that a chain of products neither grows nor fades.
    fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return np.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan_in), np.float32)


def _add() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "y"], ["z"])]
    return _model("add", nodes, [_float("x", 2, 3), _float("y", 2, 3)], [_float("z", 2, 3)])


def _chain(rows: int = 4, width: int = 8, n_layers: int = 3) -> onnx.ModelProto:
    nodes, weights, value = [], {}, "x"
    for layer in range(n_layers):
        weights[f"w{layer}"] = _weights(width, width, seed=layer)
        nodes += [
            helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]),
        ]
        value = f"r{layer}"
    return _model("chain", nodes, [_float("x", rows, width)], [_float(value, rows, width)], weights)


def _convolution() -> onnx.ModelProto:
    generator = np.random.default_rng(2)
    weights: dict[str, Array] = {
        "w": _weights(4, 3, 3, 3),
        "scale": generator.uniform(0.5, 1.5, 4).astype(np.float32),
        "bias": generator.normal(size=4).astype(np.float32),
        "mean": generator.normal(size=4).astype(np.float32),
        "variance": generator.uniform(0.5, 1.5, 4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    return _model("convolution", nodes, [_float("x", 1, 3, 8, 8)], [_float("y", 1, 4, 4, 4)], weights)


def _residual() -> onnx.ModelProto:
    weights = {"w0": _weights(4, 4, 3, 3, seed=3), "w1": _weights(4, 4, 1, 1, seed=4)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Add", ["x", "c"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    return _model("residual", nodes, [_float("x", 1, 4, 6, 6)], [_float("y", 1, 4, 6, 6)], weights)


def _attention() -> onnx.ModelProto:
    weights = {
        "q": _weights(8, 8, seed=5),
        "k": _weights(8, 8, seed=6),
        "scale": np.full(8, 1.5, np.float32),
        "shift": np.full(8, 0.25, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["xq"]),
        helper.make_node("MatMul", ["x", "k"], ["xk"]),
        helper.make_node("Transpose", ["xk"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["xq", "kt"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["o"]),
        helper.make_node("LayerNormalization", ["o", "scale", "shift"], ["y"], axis=-1),
    ]
    return _model("attention", nodes, [_float("x", 1, 5, 8)], [_float("y", 1, 5, 8)], weights)


def _two_outputs() -> onnx.ModelProto:
    nodes = [helper.make_node("Sigmoid", ["x"], ["b"]), helper.make_node("Relu", ["x"], ["a"])]
    # The order of the outputs is not the order of the nodes, and not the alphabet's.
    outputs = [_float("b", 3, 4), _float("a", 3, 4)]
    return _model("two_outputs", nodes, [_float("x", 3, 4)], outputs)


def _passthrough() -> onnx.ModelProto:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    return _model("passthrough", nodes, [_float("x", 2, 3)], [_float("y", 2, 3), _float("x", 2, 3)])


def _integers() -> onnx.ModelProto:
    weights = {"table": _weights(4, 6, seed=7), "one": np.array(1, np.int64)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["y"]),
        helper.make_node("Add", ["ids", "one"], ["next"]),
    ]
    ids = helper.make_tensor_value_info("ids", Proto.INT64, [2, 3])
    after = helper.make_tensor_value_info("next", Proto.INT64, [2, 3])
    return _model("integers", nodes, [ids], [_float("y", 2, 3, 6), after], weights)


def _booleans() -> onnx.ModelProto:
    weights = {"zero": np.array(0, np.float32)}
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("And", ["positive", "mask"], ["kept"]),
        helper.make_node("Where", ["kept", "x", "zero"], ["y"]),
    ]
    mask = helper.make_tensor_value_info("mask", Proto.BOOL, [3, 4])
    kept = helper.make_tensor_value_info("kept", Proto.BOOL, [3, 4])
    return _model("booleans", nodes, [_float("x", 3, 4), mask], [kept, _float("y", 3, 4)], weights)


def _scalar() -> onnx.ModelProto:
    nodes = [helper.make_node("Mul", ["x", "x"], ["s"]), helper.make_node("Neg", ["s"], ["y"])]
    return _model("scalar", nodes, [_float("x")], [_float("y")])


def _empty() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    return _model("empty", nodes, [_float("x", 0, 4)], [_float("y", 0, 2)], {"w": _weights(4, 2)})


def _conditional() -> onnx.ModelProto:
    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, ["x"], ["inner"])], op, [], [_float("inner", 2, 3)])

    choose = helper.make_node("If", ["flag"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"))
    flag = helper.make_tensor_value_info("flag", Proto.BOOL, [])
    return _model("conditional", [choose], [flag, _float("x", 2, 3)], [_float("y", 2, 3)])


def _bfloat16() -> onnx.ModelProto:
    weights = {"w": _weights(8, 8, seed=8).astype(ml_dtypes.bfloat16)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, Proto.BFLOAT16, [4, 8]) for name in "xy")
    return _model("bfloat16", nodes, [x], [y], weights)


def _dynamic_batch() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"]), helper.make_node("Tanh", ["g"], ["y"])]
    weights = {"w": _weights(8, 5), "b": np.linspace(-1, 1, 5, dtype=np.float32)}
    return _model("dynamic_batch", nodes, [_float("x", "batch", 8)], [_float("y", "batch", 5)], weights)


def _quantized() -> onnx.ModelProto:
    weights: dict[str, Array] = {
        "scale_x": np.array(1 / 32, np.float32),
        "zero_x": np.array(0, np.int8),
        "w": np.random.default_rng(9).integers(-127, 128, (8, 5)).astype(np.int8),
        "scale_w": np.array(1 / 128, np.float32),
        "b": np.linspace(-1, 1, 5, dtype=np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale_x", "zero_x"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale_x", "zero_x"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "scale_w"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    return _model("quantized", nodes, [_float("x", 3, 8)], [_float("y", 3, 5)], weights)


def _exacting(operator: str) -> onnx.ModelProto:
    """Sums that cancel: operands near 1 with signs in turn.

    Terms are near 1 and 64 of them sum to about 0.5, so a relative rounding error e of the operands becomes
    roughly 16 e of the result: about 1e-6 in fp32 (e = 2^-24), 7e-3 in TF32 and fp16 (e = 2^-11) and 5e-2 in
    bf16 (e = 2^-8).

    Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, section 3.1 (the condition number of
    an inner product is ``sum |x_i y_i| / |sum x_i y_i|``).
    """
    noise = np.random.default_rng(10).normal(size=(64, 8)) / 16
    signs = np.where(np.arange(64) % 2, -1.0, 1.0)[:, None]
    weights = {"w": (signs * (1 + noise)).astype(np.float32), "one": np.array(1, np.float32)}
    weights["sixteenth"] = np.array(1 / 16, np.float32)
    if operator == "MatMul":
        product = helper.make_node("MatMul", ["near", "w"], ["y"])
        shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((16, 64), (16, 8))
    else:
        weights["w"] = np.ascontiguousarray(weights["w"].T)[:, :, None, None]
        product = helper.make_node("Conv", ["near", "w"], ["y"], kernel_shape=[1, 1])
        shapes = ((1, 64, 4, 4), (1, 8, 4, 4))
    nodes = [
        helper.make_node("Mul", ["x", "sixteenth"], ["small"]),
        helper.make_node("Add", ["small", "one"], ["near"]),
        product,
    ]
    return _model("exacting", nodes, [_float("x", *shapes[0])], [_float("y", *shapes[1])], weights)


def unknown_operator() -> Graph:
    """A graph with an operator that nobody has defined: every backend must refuse it."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Unheard", ["a"], ["b"], domain="hal.testing"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    model = _model("unknown", nodes, [_float("x", 2, 3)], [_float("y", 2, 3)], domains=["hal.testing"])
    return Graph.load(model, name="unknown_operator")


def work(n_layers: int, width: int) -> Graph:
    """Products of square matrices in a row, 2 * width^3 operations each, to be timed."""
    return Graph.load(_chain(width, width, n_layers), name=f"work_{n_layers}x{width}")


#: Makers of the models, by name.
GRAPHS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "add": _add,
    "chain": _chain,
    "convolution": _convolution,
    "residual": _residual,
    "attention": _attention,
    "two_outputs": _two_outputs,
    "passthrough": _passthrough,
    "integers": _integers,
    "booleans": _booleans,
    "scalar": _scalar,
    "empty": _empty,
    "conditional": _conditional,
    "bfloat16": _bfloat16,
    "dynamic_batch": _dynamic_batch,
    "quantized": _quantized,
    "exacting_matmul": functools.partial(_exacting, "MatMul"),
    "exacting_conv": functools.partial(_exacting, "Conv"),
}
