"""Graphs for several requests at once."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hal.errors import InputError
from hal.graph.model import Graph
from hal.graph.rebatch import rebatched
from hal.testing import example_inputs, small_graph, true_outputs


def reshaping() -> Graph:
    """Has the size of a single request in a constant."""
    shape = numpy_helper.from_array(np.array([1, 8], np.int64), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", [1, 2, 4]), ("y", [1, 8]))
    )
    graph = helper.make_graph([node], "fixed", [x], [y], [shape])
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


@pytest.mark.parametrize(
    "name", ["chain", "convolution", "residual", "attention", "integers", "dynamic_batch"]
)
def test_answers_are_those_of_the_requests_one_by_one_when_gathered(name: str) -> None:
    graph = small_graph(name)
    many = rebatched(graph, 3)
    assert [spec.shape[0] for spec in many.signature.inputs] == [
        3 * int(spec.shape[0]) for spec in graph.signature.inputs
    ]
    assert list(many.nodes) == list(graph.nodes)
    assert many.digest != graph.digest
    requests = [example_inputs(graph, seed) for seed in range(3)]
    together = true_outputs(many, [np.concatenate(arrays) for arrays in zip(*requests, strict=True)])
    alone = [true_outputs(graph, request) for request in requests]
    for at, output in enumerate(together):
        np.testing.assert_allclose(output, np.concatenate([one[at] for one in alone]), rtol=1e-5, atol=1e-6)


def test_the_graph_stays_as_it_is_when_it_is_made_for_more() -> None:
    graph = small_graph("chain")
    before = graph.signature
    rebatched(graph, 4)
    assert graph.signature == before


def test_a_graph_is_refused_when_an_input_has_no_dimension() -> None:
    with pytest.raises(InputError) as raised:
        rebatched(small_graph("scalar"), 2)
    assert str(raised.value) == (
        "requests of 'scalar' cannot be gathered: input x: float32[] has no dimension to gather along"
    )


def test_a_graph_is_refused_when_sizes_follow_from_values() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Transpose", ["at"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 2])
    model = helper.make_model(
        helper.make_graph(nodes, "found", [x], [y]), opset_imports=[helper.make_opsetid("", 17)]
    )
    with pytest.raises(
        InputError, match=r"the size of output y: int64\[.*\] may follow from values \(NonZero\)"
    ):
        rebatched(Graph.load(model), 2)


def test_a_graph_is_refused_when_an_output_does_not_grow_with_its_inputs() -> None:
    with pytest.raises(InputError) as raised:
        rebatched(reshaping(), 2)
    text = str(raised.value)
    assert text.startswith("requests of 'fixed' cannot be gathered: output y: float32[1, 8] would be ")
    assert text.endswith("not 2 times as large in its first dimension")
