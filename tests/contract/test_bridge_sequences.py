"""Sequences, optional values and types of ml_dtypes through the cpu plugin, against the ONNX reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, parser
from onnx.reference import ReferenceEvaluator

from hal.backend import Configuration, Executable
from hal.errors import InputError, UnsupportedGraph
from hal.graph.model import Graph
from hal.tensor import HostTensor, as_numpy
from hal_cpu.backend import CpuBackend

FP32 = Configuration.of("fp32")


def parsed(text: str, opset: int = 18) -> onnx.ModelProto:
    """A model from ONNX's own notation."""
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')


def compiled(model: onnx.ModelProto) -> Executable:
    """The model on the processor; every node must be one that the plugin says it supports."""
    backend, graph = CpuBackend(), Graph.load(model)
    device = backend.discover()[0]
    assert all(support.yes for support in backend.capability(device, graph, "fp32").values())
    return backend.compile(device, graph, FP32)


def same_as_the_reference(model: onnx.ModelProto, *inputs: np.ndarray) -> bool:
    """Whether the plugin answers what the ONNX reference answers."""
    names = [value.name for value in model.graph.input]
    expected = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    found = [as_numpy(result) for result in compiled(model).run(inputs)]
    return all(
        a.shape == b.shape and a.dtype == b.dtype and np.allclose(a, b)
        for a, b in zip(found, expected, strict=True)
    )


X = np.arange(24, dtype=np.float32).reshape(4, 6)

GRAPHS = {
    "construct_at": """g (float[4, 6] x) => (float[4, 6] y) {
        n = Neg(x)  i = Constant<value_int = -1>()
        s = SequenceConstruct(x, n)  y = SequenceAt(s, i) }""",
    "insert_erase_length": """g (float[4, 6] x) => (float[4, 12] y, int64 count) {
        zero = Constant<value_int = 0>()
        e = SequenceEmpty()  a = SequenceInsert(e, x)  n = Neg(x)  b = SequenceInsert(a, n, zero)
        c = SequenceInsert(b, x)  d = SequenceErase(c, zero)
        count = SequenceLength(c)  y = ConcatFromSequence<axis = 1>(d) }""",
    "split_stack": """g (float[4, 6] x) => (float[2, 4, 3] y) {
        size = Constant<value_int = 3>()
        s = SplitToSequence<axis = 1>(x, size)  y = ConcatFromSequence<axis = 0, new_axis = 1>(s) }""",
    "split_uneven": """g (float[4, 6] x) => (float[4, 2] y) {
        sizes = Constant<value_ints = [4, 2]>()  one = Constant<value_int = 1>()
        s = SplitToSequence<axis = 1>(x, sizes)  y = SequenceAt(s, one) }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sequences_answer_as_the_reference_when_they_stay_inside(name: str) -> None:
    assert same_as_the_reference(parsed(GRAPHS[name]), X)


def test_present_value_is_given_back_when_asked() -> None:
    text = """g (float[4, 6] x) => (float[4, 6] y, bool there) {
        o = Optional(x)  there = OptionalHasElement(o)  y = OptionalGetElement(o) }"""
    y, there = (as_numpy(result) for result in compiled(parsed(text)).run([X]))
    assert np.array_equal(y, X)
    assert bool(there)


def test_absent_value_has_no_element_when_asked() -> None:
    type_proto = helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, [4, 6]))
    nodes = [
        helper.make_node("Optional", [], ["o"], name="absent", type=type_proto),
        helper.make_node("OptionalHasElement", ["o"], ["there"], name="ask"),
        helper.make_node("Neg", ["x"], ["y"], name="negate"),
    ]
    ends = [helper.make_tensor_value_info("x", T.FLOAT, [4, 6])]
    outputs = [helper.make_tensor_value_info("y", T.FLOAT, [4, 6])]
    outputs.append(helper.make_tensor_value_info("there", T.BOOL, []))
    graph = helper.make_graph(nodes, "g", ends, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    _, there = (as_numpy(result) for result in compiled(model).run([X]))
    assert not bool(there)


def test_output_is_refused_when_it_is_a_sequence() -> None:
    model = parsed("g (float[4, 6] x) => (seq(float[4, 1]) y) { y = SplitToSequence<axis = 1>(x) }")
    model.graph.node[0].name = "cut"
    backend, graph = CpuBackend(), Graph.load(model)
    device = backend.discover()[0]
    reason = "SplitToSequence: output y is a sequence; only tensors can come out"
    assert backend.capability(device, graph, "fp32")["cut"].reason == reason
    with pytest.raises(UnsupportedGraph, match="is a sequence; only tensors can come out"):
        backend.compile(device, graph, FP32)


def cast(source: int, target: int, shape: Sequence[int] = (3,)) -> onnx.ModelProto:
    """A model of one Cast."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], name="cast", to=target)],
        "g",
        [helper.make_tensor_value_info("x", source, shape)],
        [helper.make_tensor_value_info("y", target, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        (T.INT4, ml_dtypes.int4),
        (T.UINT4, ml_dtypes.uint4),
        (T.INT2, ml_dtypes.int2),
        (T.UINT2, ml_dtypes.uint2),
        (T.FLOAT4E2M1, ml_dtypes.float4_e2m1fn),
        (T.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (T.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
        (T.FLOAT8E8M0, ml_dtypes.float8_e8m0fnu),
        (T.BFLOAT16, ml_dtypes.bfloat16),
    ],
)
def test_narrow_types_go_in_and_out_as_arrays_of_ml_dtypes(code: int, dtype: type) -> None:
    values = np.array([0.5, 1, 2] if code == T.FLOAT8E8M0 else [0, 1, 1], np.float32)
    out = compiled(cast(T.FLOAT, code))
    (result,) = out.run([values])
    assert as_numpy(result).dtype == np.dtype(dtype)
    assert np.array_equal(as_numpy(result).astype(np.float32), values)
    bound = HostTensor(np.zeros(3, dtype))
    if code != T.BFLOAT16:
        out.run([values], [bound])
        assert np.array_equal(bound.array.astype(np.float32), values)
    inputs: list[Any] = [values.astype(dtype), HostTensor(values.astype(dtype))]
    for given in inputs:
        (back,) = compiled(cast(code, T.FLOAT)).run([given])
        assert np.array_equal(as_numpy(back), values)


def test_input_is_refused_when_it_has_the_type_that_only_carries_it() -> None:
    with pytest.raises(InputError, match=r"input 'x': int8 array; expected one of ml_dtypes\.int4"):
        compiled(cast(T.INT4, T.FLOAT)).run([np.array([100, 1, 2], np.int8)])


def test_output_is_refused_when_it_is_bound_to_another_type() -> None:
    with pytest.raises(InputError, match=r"output 'y': bound to int8\[3\]; expected int4\[3\]"):
        compiled(cast(T.FLOAT, T.INT4)).run([np.zeros(3, np.float32)], [np.zeros(3, np.int8)])
