from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hal.errors import PlanError
from hal.executor.partitions import Cut, Piece, cut
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.testing import example_inputs, small_graph, true_outputs

A, B = "cpu:0/a/fp32", "cpu:0/b/fp32"


def tensor(name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=outputs[0], **attributes)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> Graph:
    proto = helper.make_graph(nodes, "small", inputs, outputs, weights)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def carry_out(graph: Graph, cutting: Cut) -> list[np.ndarray]:
    """The outputs of the parts by the reference, one after the other."""
    inputs = example_inputs(graph)
    values = dict(zip([spec.name for spec in graph.signature.inputs], inputs, strict=True))
    values |= cutting.constants
    for part in cutting.parts:
        given = {name: values[name] for name in part.inputs}
        values |= reference_outputs(part.graph.to_proto(), given)
    return [values[spec.name] for spec in graph.signature.outputs]


def check(graph: Graph, pieces: Sequence[Piece]) -> Cut:
    cutting = cut(graph, pieces)
    wanted = true_outputs(graph, example_inputs(graph))
    for got, want in zip(carry_out(graph, cutting), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert got.dtype == want.dtype
    return cutting


def ends(cutting: Cut) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(part.inputs, part.outputs) for part in cutting.parts]


@pytest.mark.parametrize(
    "name",
    ["chain", "convolution", "residual", "attention", "two_outputs", "integers", "booleans", "quantized"],
)
@pytest.mark.parametrize("n_pieces", [2, 3])
def test_parts_compute_what_the_graph_does_when_it_is_cut_in_order(name: str, n_pieces: int) -> None:
    graph = small_graph(name)
    nodes = list(graph.nodes)
    at = [round(len(nodes) * k / n_pieces) for k in range(n_pieces + 1)]
    pieces = [Piece((A, B)[k % 2], tuple(nodes[at[k] : at[k + 1]])) for k in range(n_pieces)]
    check(graph, [piece for piece in pieces if piece.nodes])


def test_a_value_is_handed_on_and_returned_when_it_is_an_output_that_others_read() -> None:
    graph = graph_of(
        [node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["y"])],
        [tensor("x", 2, 3)],
        [tensor("h", 2, 3), tensor("y", 2, 3)],
    )
    assert ends(check(graph, [Piece(A, ("h",)), Piece(B, ("y",))])) == [(("x",), ("h",)), (("h",), ("y",))]


def test_a_value_is_handed_on_over_a_partition_when_only_the_one_after_reads_it() -> None:
    graph = graph_of(
        [node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["i"]), node("Add", ["h", "i"], ["y"])],
        [tensor("x", 2, 3)],
        [tensor("y", 2, 3)],
    )
    found = check(graph, [Piece(A, ("h",)), Piece(B, ("i",)), Piece(A, ("y",))])
    assert ends(found)[2] == (("h", "i"), ("y",))


def test_the_model_passes_things_through_when_outputs_are_inputs_or_weights() -> None:
    weight = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    graph = graph_of(
        [
            node("Relu", ["x"], ["h"]),
            node("Neg", ["h"], ["y"]),
            node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([7]))),
        ],
        [tensor("x", 2, 3)],
        [tensor("y", 2, 3), tensor("x", 2, 3), tensor("w", 3), tensor("c", 1, dtype=TensorProto.INT64)],
        [weight],
    )
    found = check(graph, [Piece(A, ("h",)), Piece(B, ("y",))])
    assert sorted(found.constants) == ["c", "w"]


def test_fixed_nodes_come_along_with_each_partition_that_reads_them() -> None:
    # Dequantized weights are read on both sides; they are no value that is handed over.
    graph = graph_of(
        [
            node("DequantizeLinear", ["q", "s"], ["w"]),
            node("MatMul", ["x", "w"], ["h"]),
            node("MatMul", ["h", "w"], ["y"]),
        ],
        [tensor("x", 64, 64)],
        [tensor("y", 64, 64)],
        [
            numpy_helper.from_array(np.ones((64, 64), np.int8), "q"),
            numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        ],
    )
    found = check(graph, [Piece(A, ("w", "h")), Piece(B, ("y",))])
    assert ends(found) == [(("x",), ("h",)), (("h",), ("y",))]
    assert [list(part.graph.nodes) for part in found.parts] == [["w", "h"], ["w", "y"]]


def test_nodes_of_no_partition_come_along_with_those_that_read_them() -> None:
    graph = graph_of(
        [
            node("Relu", ["x"], ["h"]),
            node("Identity", ["h"], ["i"]),
            node("Neg", ["i"], ["y"]),
            node("Abs", ["i"], ["z"]),
        ],
        [tensor("x", 2, 3)],
        [tensor("y", 2, 3), tensor("z", 2, 3)],
    )
    found = check(graph, [Piece(A, ("h",)), Piece(B, ("y",)), Piece(A, ("z",))])
    assert ends(found) == [(("x",), ("h",)), (("h",), ("y",)), (("h",), ("z",))]


def test_an_output_of_a_node_of_no_partition_is_made_where_its_inputs_are() -> None:
    graph = graph_of(
        [
            node("Relu", ["x"], ["h"]),
            node("Neg", ["h"], ["y"]),
            node("Identity", ["h"], ["i"]),
            node("Abs", ["x"], ["z"]),
            node("Add", ["c", "c"], ["fixed"]),
        ],
        [tensor("x", 2, 3)],
        [tensor("y", 2, 3), tensor("i", 2, 3), tensor("z", 2, 3), tensor("fixed", 1)],
        [numpy_helper.from_array(np.array([4], np.float32), "c")],
    )
    found = check(graph, [Piece(A, ("z",)), Piece(B, ("h",)), Piece(A, ("y",))])
    assert ends(found) == [(("x",), ("z", "fixed")), (("x",), ("h", "i")), (("h",), ("y",))]


def test_values_that_subgraphs_capture_are_handed_over() -> None:
    branch = [
        helper.make_graph([node(op, ["h"], [f"{op}_out"])], op, [], [tensor(f"{op}_out", 2, 3)])
        for op in ("Abs", "Neg")
    ]
    graph = graph_of(
        [
            node("Sub", ["x", "one"], ["h"]),
            node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1]),
        ],
        [tensor("x", 2, 3), tensor("c", dtype=TensorProto.BOOL)],
        [tensor("y", 2, 3)],
        [numpy_helper.from_array(np.array([1], np.float32), "one")],
    )
    found = check(graph, [Piece(A, ("h",)), Piece(B, ("y",))])
    assert [set(inputs) for inputs, _ in ends(found)] == [{"x"}, {"c", "h"}]


def test_sequences_are_made_again_when_another_partition_reads_them() -> None:
    graph = graph_of(
        [
            node("Relu", ["x"], ["h"]),
            node("SequenceConstruct", ["h", "x"], ["s"]),
            node("Neg", ["h"], ["n"]),
            node("ConcatFromSequence", ["s"], ["y"], axis=0),
        ],
        [tensor("x", 2, 3)],
        [tensor("n", 2, 3), tensor("y", 4, 3)],
    )
    found = check(graph, [Piece(A, ("h", "s", "n")), Piece(B, ("y",))])
    assert [set(inputs) for inputs, _ in ends(found)] == [{"x"}, {"x", "h"}]


def test_ends_keep_the_graphs_types_when_numpy_has_none() -> None:
    bf16 = TensorProto.BFLOAT16
    graph = graph_of(
        [
            node("Cast", ["x"], ["h"], to=bf16),
            node("Neg", ["h"], ["i"]),
            node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        [tensor("x", 2, 3)],
        [tensor("y", 2, 3)],
    )
    found = check(graph, [Piece(A, ("h",)), Piece(B, ("i",)), Piece(A, ("y",))])
    assert found.parts[1].graph.signature.inputs[0].dtype == "bfloat16"
    assert found.parts[1].graph.signature.outputs[0].dtype == "bfloat16"


def test_partitions_are_left_out_when_nobody_needs_what_they_make() -> None:
    graph = graph_of(
        [node("Relu", ["x"], ["dead"]), node("Neg", ["x"], ["y"])], [tensor("x", 2)], [tensor("y", 2)]
    )
    found = check(graph, [Piece(A, ("dead",)), Piece(B, ("y",))])
    assert [part.number for part in found.parts] == [1]


def test_weights_are_shared_with_the_graph() -> None:
    graph = small_graph("chain")
    nodes = list(graph.nodes)
    found = cut(graph, [Piece(A, tuple(nodes[:2])), Piece(B, tuple(nodes[2:]))])
    held = {name: value.const_value for name, value in graph.model.graph.initializers.items()}
    for part in found.parts:
        for name, value in part.graph.model.graph.initializers.items():
            assert value.const_value is held[name]


def test_one_partition_is_the_graph_itself() -> None:
    graph = small_graph("chain")
    (part,) = cut(graph, [Piece(A, tuple(graph.nodes))]).parts
    assert part.graph is graph
    assert str(part.target) == A


# --- errors -----------------------------------------------------------------------------------------


def three() -> Graph:
    return graph_of(
        [node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["i"]), node("Abs", ["i"], ["y"])],
        [tensor("x", 2, 3)],
        [tensor("y", 2, 3)],
    )


def test_a_plan_is_refused_when_it_does_not_fit_the_graph() -> None:
    pieces = [Piece(A, ("h", "zoo")), Piece(B, ("h", "i", "y")), Piece(B, ())]
    with pytest.raises(PlanError) as caught:
        cut(three(), pieces)
    assert caught.value.message == (
        "the plan does not fit the graph 'small':\n"
        "  - partition 0 has 'zoo', no nodes of the graph\n"
        "  - partition 1 has 'h', which partition 0 has too\n"
        "  - partition 2 has no nodes"
    )
    with pytest.raises(PlanError, match="it has no partition; expected at least one"):
        cut(three(), [])


def test_a_plan_is_refused_when_a_partition_reads_what_a_later_one_makes() -> None:
    with pytest.raises(PlanError) as caught:
        cut(three(), [Piece(A, ("h", "y")), Piece(B, ("i",))])
    assert caught.value.message == (
        "the plan cannot be carried out on 'small': partition 0 on cpu:0/a/fp32 reads 'i' of node 'i', which "
        "partition 1 computes; expected an earlier one"
    )


def test_a_plan_is_refused_when_a_value_of_unknown_size_is_handed_over() -> None:
    graph = graph_of(
        [node("NonZero", ["x"], ["h"]), node("Neg", ["h"], ["y"])],
        [tensor("x", 2, 3)],
        [tensor("y", 2, "n", dtype=TensorProto.INT64)],
    )
    with pytest.raises(PlanError) as caught:
        cut(graph, [Piece(A, ("h",)), Piece(B, ("y",))])
    assert (
        "'h' of node 'h' has no known size, so that it cannot be handed from partition 0 to partition 1"
        in str(caught.value)
    )


def test_a_plan_is_refused_when_an_output_is_no_tensor() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, (2, 3))
    graph = graph_of(
        [node("Relu", ["x"], ["h"]), node("SequenceConstruct", ["h"], ["s"])], [tensor("x", 2, 3)], [sequence]
    )
    with pytest.raises(PlanError, match=r"outputs 's' of 'small' are no tensors of a known type"):
        cut(graph, [Piece(A, ("h",)), Piece(B, ("s",))])
