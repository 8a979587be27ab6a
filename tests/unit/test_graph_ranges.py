"""Ranges of sizes: which dimensions stay free, which shapes are within, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from hal.errors import InputError
from hal.graph.cut import Cutter
from hal.graph.model import Graph
from hal.graph.ranges import Ranges, has_ranges, largest
from hal.tensor import fits, host_inputs


def graph(**inputs: Sequence[int | str | None] | None) -> Graph:
    """A model that adds one to the first of these inputs, and reads the others."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"], name=name) for name in inputs]
    outputs = [helper.make_empty_tensor_value_info(f"{name}_out") for name in inputs]
    for output in outputs:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    proto = helper.make_graph(nodes, "read", ends, outputs)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def test_dimensions_with_a_range_stay_free_and_others_are_bound() -> None:
    model = graph(x=("batch", 3, None, "width"))
    free, ranges = model.bind_ranges({"x": [(1, 8), 3, (16, 32), 64]})
    assert ranges == Ranges((("batch", 3, "x_2", 64),), {"batch": (1, 8), "x_2": (16, 32)})
    assert free.signature.inputs[0].shape == ("batch", 3, "x_2", 64)
    assert free.signature.outputs[0].shape == ("batch", 3, "x_2", 64)
    assert ranges.shown(0) == "batch=1..8, 3, x_2=16..32, 64"
    assert model.signature.inputs[0].shape == ("batch", 3, "?", "width")


def test_inputs_that_share_a_dimension_share_its_range() -> None:
    model = graph(x=("batch", "length"), mask=("batch", "length"), scale=("batch",), bias=("other",))
    _, ranges = model.bind_ranges({"x": [(1, 4), 16]}, {"bias": (5,), "mask": (4, 16)})
    assert ranges.shapes == (("batch", 16), ("batch", 16), ("batch",), (5,))
    with pytest.raises(InputError, match=r"dimensions without a number: bias\[other\]"):
        model.bind_ranges({"x": [(1, 4), 16]})


def test_an_input_of_any_rank_takes_the_shape_it_is_given() -> None:
    _, ranges = graph(x=None, y=None).bind_ranges({"x": [(1, 2), 3]}, {"y": (7,)})
    assert ranges.shapes == (("x_0", 3), (7,))


def test_a_range_of_one_size_is_that_size() -> None:
    free, ranges = graph(x=("a", "b")).bind_ranges({"x": [(3, 3), (1, 2)]})
    assert ranges.shapes == ((3, "b"),)
    assert free.unbound == ("x[3, b]",)


def test_graphs_are_told_apart_by_their_ranges() -> None:
    model = graph(x=("batch", 3))
    digests = {model.bind_ranges({"x": [(1, n), 3]})[0].digest for n in (2, 3, 4)}
    assert len(digests | {model.digest, model.bind({"x": (2, 3)}).digest}) == 5
    assert model.bind_ranges({"x": [(1, 2), 3]})[0].digest in digests


def test_shapes_are_within_when_all_sizes_are_and_names_agree() -> None:
    ranges = Ranges((("n", 8), ("n",), (3,)), {"n": (2, 4)})
    within = [[(2, 8), (2,), (3,)], [(4, 8), (4,), (3,)]]
    outside: list[list[tuple[int, ...]]] = [
        [(1, 8), (1,), (3,)],
        [(5, 8), (5,), (3,)],
        [(2, 8), (3,), (3,)],
        [(2, 9), (2,), (3,)],
        [(2, 8), (2,), (4,)],
        [(2, 8, 1), (2,), (3,)],
        [(2,), (2,), (3,)],
    ]
    assert all(map(ranges.hold, within))
    assert not any(map(ranges.hold, outside))


def test_the_largest_sizes_are_taken_from_ranges() -> None:
    assert largest({"x": [(1, 8), 3], "y": [np.int64(2)]}) == {"x": (8, 3), "y": (2,)}
    assert has_ranges({"x": [(1, 8), 3]})
    assert not has_ranges({"x": [8, 3]})
    assert not has_ranges(None)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"x": [(1, 4), 2], "y": [(1, 3)]}, "dimension 'n' is 4 for one input and 3 for 'y'"),
        ({"x": [(1, 4), 2], "y": [(2, 4)]}, r"dimension 'n' is 1\.\.4 for one input and 2\.\.4 for 'y'"),
        ({"x": [(1, 4), 2], "y": [4]}, r"dimension 'n' is 1\.\.4 for one input and 4 for 'y'"),
        ({"x": [4, (1, 2)], "y": [4]}, r"float32\[n, 2\] is fixed to 2 where 1\.\.2 is given; expected 2"),
        ({"z": [(1, 4)]}, "input 'z' is unknown"),
        ({"x": [(1, 4)]}, "has 2 dimensions"),
        ({"x": [(4, 1), 2]}, r"input 'x' has \(4, 1\) at position 0; expected a size, or a pair"),
    ],
)
def test_ranges_are_refused_when_they_do_not_fit(shapes: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        graph(x=("n", 2), y=("n",)).bind_ranges(shapes)


def test_a_tensor_of_known_rank_can_cross_a_cut_only_where_the_graph_has_free_sizes() -> None:
    model = graph(x=("n", 2))
    free, _ = model.bind_ranges({"x": [(1, 4), 2]})
    assert Cutter(free).is_sized("x_out")
    assert Cutter(model.bind({"x": (4, 2)})).is_sized("x_out")


def test_names_in_a_shape_stand_for_any_size() -> None:
    assert fits((3, 2), ("n", 2))
    assert not fits((3, 3), ("n", 2))
    assert not fits((3,), ("n", 2))
    specs = graph(x=("n", 2)).signature.inputs
    x = np.ones((3, 2), np.float32)
    assert host_inputs(specs, [x])[0] is x
    with pytest.raises(InputError, match=r"input 'x' is float32\[3, 3\]; expected x: float32\[n, 2\]"):
        host_inputs(specs, [np.ones((3, 3), np.float32)])
