"""Parts of graphs compute what the whole does."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hal.graph.cut import Cutter, storable
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.profiling.sources import random_inputs
from hal.tensor import Array
from hal.testing import small_graph
from hal.testing.graphs import GRAPHS


def values_of(cutter: Cutter) -> dict[str, Array]:
    """Every value of a graph on random inputs, its inputs among them."""
    graph = cutter.prefix(list(cutter.values))
    inputs = random_inputs(cutter.graph)
    needed = {spec.name: inputs[spec.name] for spec in graph.signature.inputs}
    return {**inputs, **reference_outputs(graph.to_proto(), needed)}


def check_part(cutter: Cutter, nodes: Iterable[str], outputs: list[str], values: dict[str, Array]) -> Graph:
    """A part passes onnx's checker and computes the values that the whole does."""
    part = cutter.part(set(nodes), outputs)
    onnx.checker.check_model(part.to_proto(), full_check=True)
    assert [spec.name for spec in part.signature.outputs] == outputs
    given = {spec.name: storable(values[spec.name]) for spec in part.signature.inputs}
    assert list(given) == [
        spec.name for spec in part.signature.inputs if spec.dtype == given[spec.name].dtype.name
    ]
    found = reference_outputs(part.to_proto(), given)
    for name in outputs:
        np.testing.assert_array_equal(found[name], values[name], err_msg=name)
    return part


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_each_node_alone_computes_the_same_when_its_inputs_are_given(name: str) -> None:
    cutter = Cutter(small_graph(name))
    values = values_of(cutter)
    for node in cutter.nodes:
        part = check_part(cutter, [node], list(cutter.writes(node)), values)
        assert node in part.nodes


@pytest.mark.parametrize("name", ["chain", "residual", "attention", "quantized", "booleans"])
def test_any_two_nodes_compute_the_same_when_cut_out_together(name: str) -> None:
    cutter = Cutter(small_graph(name))
    values = values_of(cutter)
    for pair in itertools.combinations(cutter.nodes, 2):
        check_part(cutter, pair, [value for node in pair for value in cutter.writes(node)], values)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_prefixes_hold_the_ancestors_alone_when_cut_at_any_place(name: str) -> None:
    cutter = Cutter(small_graph(name))
    values = values_of(cutter)
    for cut in range(1, len(cutter.nodes) + 1):
        crossing = cutter.frontier(cutter.nodes[:cut], cutter.nodes[cut:], cutter.outputs)
        graph = cutter.prefix(crossing)
        assert set(graph.nodes) == cutter.ancestors(crossing) <= set(cutter.nodes[:cut])
        needed = {spec.name: values[spec.name] for spec in graph.signature.inputs}
        found = reference_outputs(graph.to_proto(), needed)
        for value in crossing:
            np.testing.assert_array_equal(found[value], values[value])


def test_the_graph_stays_as_it_is_when_it_is_cut() -> None:
    graph = small_graph("residual")
    before = graph.to_proto().SerializeToString(deterministic=True)
    cutter = Cutter(graph)
    for value, node in cutter.values.items():
        cutter.prefix([value])
        cutter.part({node}, [value])
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_digests_differ_when_parts_do() -> None:
    cutter = Cutter(small_graph("chain"))
    parts = [cutter.prefix(["m0"]), cutter.prefix(["r0"]), cutter.prefix(["m0", "r0"]), cutter.prefix(["r1"])]
    parts += [cutter.part({node}, list(cutter.writes(node))) for node in cutter.nodes]
    # The first prefix and the first node alone are the same part.
    assert len({part.digest for part in parts}) == len(parts) - 1
    other = Cutter(small_graph("residual"))
    assert other.prefix(["a"]).digest != cutter.prefix(["m0"]).digest
    assert cutter.prefix(["r0"]).digest == parts[1].digest
    narrow = Cutter(small_graph("bfloat16"))
    # Of the same nodes, but one takes float32.
    assert narrow.prefix(["m"]).digest != narrow.part({narrow.nodes[0]}, ["m"]).digest


def test_weights_stay_weights_when_a_node_prepares_them() -> None:
    cutter = Cutter(small_graph("quantized"))
    part = check_part(cutter, [cutter.producer("m") or ""], ["m"], values_of(cutter))
    assert [spec.name for spec in part.signature.inputs] == ["xd"]
    # wd has few elements, so it is known without being computed.
    assert set(part.model.graph.initializers) == {"wd"}
    assert part.weight_bytes == 8 * 5 * 4


def test_nodes_that_prepare_large_weights_come_along_when_a_part_reads_them() -> None:
    weight = numpy_helper.from_array(np.ones((64, 32), np.int8), "w")
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"], name="dequantize"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "wd"], ["y"], name="product"),
    ]
    cutter = Cutter(made(nodes, [2, 64], ["y"], [weight, scale]))
    assert cutter.is_fixed("dequantize")
    assert cutter.layers(["y"]) == [["product"], ["relu"]]
    part = check_part(cutter, ["product"], ["y"], values_of(cutter))
    assert list(part.nodes) == ["dequantize", "product"]


def test_shapes_become_constants_when_they_are_computed_from_bound_inputs() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Shape", ["r"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "one"], ["width"], name="gather"),
        helper.make_node("Concat", ["width", "rest"], ["sizes"], axis=0, name="concat"),
        helper.make_node("Reshape", ["r", "sizes"], ["y"], name="reshape"),
    ]
    weights = [numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(np.array([-1]), "rest")]
    cutter = Cutter(made(nodes, [2, 3], ["y"], weights))
    part = check_part(cutter, ["reshape"], ["y"], values_of(cutter))
    assert [spec.name for spec in part.signature.inputs] == ["r"]
    sizes = part.model.graph.initializers["sizes"].const_value
    assert sizes is not None
    assert sizes.numpy().tolist() == [3, -1]


def test_sequences_come_along_when_a_part_reads_them() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=0, name="split"),
        helper.make_node("Identity", ["s"], ["same"], name="same"),
        helper.make_node("SequenceLength", ["same"], ["n"], name="length"),
        helper.make_node("SequenceAt", ["same", "at"], ["y"], name="at"),
    ]
    cutter = Cutter(made(nodes, [2, 3], ["y"], [numpy_helper.from_array(np.array(1), "at")]))
    assert list(cutter.values) == ["n", "y"]
    part = check_part(cutter, ["at"], ["y"], values_of(cutter))
    assert list(part.nodes) == ["split", "same", "at"]
    with pytest.raises(ValueError, match=r"\['s'\] cannot be outputs of a part of 'made'; expected tensors"):
        cutter.prefix(["s"])


def test_strings_and_optionals_cannot_be_outputs_when_a_model_has_them() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING, name="text"),
        helper.make_node("Cast", ["text"], ["number"], to=TensorProto.FLOAT, name="number"),
        helper.make_node("Optional", ["number"], ["maybe"], name="maybe"),
        helper.make_node("OptionalHasElement", ["maybe"], ["has"], name="has"),
        helper.make_node("OptionalGetElement", ["maybe"], ["y"], name="get"),
    ]
    cutter = Cutter(made(nodes, [2], ["has"], opset=18))
    assert list(cutter.values) == ["number", "has"]  # what an optional holds may be a sequence


def test_ends_of_branches_decide_when_control_flow_gives_sequences() -> None:
    def branch(name: str) -> onnx.GraphProto:
        inner = helper.make_node("SplitToSequence", ["x"], [name], axis=0)
        end = helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([inner], name, [], [end])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL, name="flag"),
        helper.make_node("If", ["flag"], ["s"], then_branch=branch("a"), else_branch=branch("b"), name="if"),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0, name="concat"),
    ]
    cutter = Cutter(made(nodes, [2, 3], ["y"]))
    assert list(cutter.values) == ["sum", "flag", "y"]
    part = check_part(cutter, ["concat"], ["y"], values_of(cutter))
    assert list(part.nodes) == ["if", "concat"]


def test_a_value_read_from_within_a_branch_becomes_an_input_when_its_node_is_left_out() -> None:
    def branch(op: str) -> onnx.GraphProto:
        end = helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, [2, 3])
        return helper.make_graph([helper.make_node(op, ["r"], [f"{op}_y"])], op, [], [end])

    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL, name="flag"),
        helper.make_node(
            "If", ["flag"], ["y"], then_branch=branch("Neg"), else_branch=branch("Exp"), name="if"
        ),
    ]
    cutter = Cutter(made(nodes, [2, 3], ["y"]))
    assert cutter.reads("if") == ("flag", "r")
    assert cutter.ancestors(["y"]) == {"relu", "sum", "flag", "if"}
    part = check_part(cutter, ["if"], ["y"], values_of(cutter))
    assert {spec.name for spec in part.signature.inputs} == {"flag", "r"}


def test_constants_are_weights_when_nodes_make_them() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=2.0, name="constant"),
        helper.make_node("Mul", ["x", "c"], ["y"], name="mul"),
    ]
    cutter = Cutter(made(nodes, [2], ["y"]))
    assert list(cutter.values) == ["y"]
    assert [s.name for s in check_part(cutter, ["mul"], ["y"], values_of(cutter)).signature.inputs] == ["x"]


def test_ends_state_shapes_when_only_a_run_tells_them() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["at"], name="nonzero"),
        helper.make_node("Cast", ["at"], ["y"], to=TensorProto.FLOAT, name="cast"),
    ]
    cutter = Cutter(made(nodes, [2, 3], ["y"]))
    before = cutter.part({"cast"}, ["y"])
    assert before.unbound
    cutter.learn({"at": (2, 4), "y": (2, 4)})
    after = cutter.part({"cast"}, ["y"])
    assert [str(spec) for spec in (*after.signature.inputs, *after.signature.outputs)] == [
        "at: int64[2, 4]",
        "y: float32[2, 4]",
    ]
    assert before.digest != after.digest


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (ml_dtypes.bfloat16, np.float32),
        (ml_dtypes.float8_e4m3fn, np.float32),
        (ml_dtypes.int4, np.int8),
        (ml_dtypes.uint4, np.uint8),
        (np.float16, np.float16),
        (np.int64, np.int64),
        (np.bool_, np.bool_),
    ],
)
def test_arrays_are_stored_without_loss_when_numpy_has_no_such_type(given: type, stored: type) -> None:
    array: Array = np.array([0, 1, 2, 3]).astype(given)
    assert storable(array).dtype == stored
    np.testing.assert_array_equal(storable(array).astype(given), array)


def made(
    nodes: list[onnx.NodeProto],
    shape: list[int],
    outputs: list[str],
    weights: list[onnx.TensorProto] | None = None,
    opset: int = 17,
) -> Graph:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    kind = TensorProto.BOOL if outputs == ["has"] else TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(nodes, "made", [x], ends, weights or [])
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
