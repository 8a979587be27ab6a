"""Where two targets part, on fake backends in this process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hal.backend import Configuration, Device
from hal.errors import BackendError, TargetError, UserError
from hal.graph.cut import Cutter
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.profiling import sources
from hal.profiling.divergence import Diff, compare, diff
from hal.profiling.divergence_search import Job, chunked
from hal.profiling.divergence_sides import Pair, ReferenceSide, TargetSide
from hal.profiling.progress import Silent
from hal.records.divergence import Divergence
from hal.records.files import from_json, to_json
from hal.testing import FakeBackend, small_graph
from tests.throwaway import Plugins
from tests.unit.faulty_backends import Faulty

Fault = Mapping[str, Any]


def side(name: str, backend: FakeBackend, precision: str = "fp32", **more: Any) -> TargetSide:
    device: Device = backend.discover()[0]
    return TargetSide(name, device, Configuration.of(precision), lambda: backend, **more)


def pair(*faults: Fault, precision: str = "fp32", **configuration: Any) -> Pair:
    """A right side and one with faults."""
    return Pair(
        side("right", FakeBackend()), side("faulty", Faulty(faults=faults, **configuration), precision)
    )


def run(graph: Graph | str, *faults: Fault, tolerance: float | None = None, **configuration: Any) -> Diff:
    budget_bytes = configuration.pop("budget_bytes", None)
    subject = sources.resolve(small_graph(graph) if isinstance(graph, str) else graph)
    both = pair(*faults, **configuration)
    return compare(subject, both, tolerance=tolerance, budget_bytes=budget_bytes)


def check_reproduces(found: Diff, *faults: Fault, **configuration: Any) -> None:
    """The model alone, read again from its bytes, parts; and onnx has nothing against it."""
    assert found.model is not None
    assert found.inputs is not None
    proto = found.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    subject = sources.resolve(Graph.load(proto.SerializeToString()), found.inputs)
    assert compare(subject, pair(*faults, **configuration), locate=False).record.parted


def graph_of(nodes: Sequence[onnx.NodeProto], shape: Sequence[int], *outputs: str, **weights: Any) -> Graph:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    # Rank and type of the outputs are left to inference.
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_graph(list(nodes), "made", [x], ends, tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Graph.load(model)


WHERE = [
    (name, value)
    for name in ("chain", "residual", "attention", "convolution", "quantized")
    for value in Cutter(small_graph(name)).values
    if value != "xq"  # int8, which no factor of float32 multiplies
]


@pytest.mark.parametrize(("name", "value"), WHERE)
def test_first_node_is_the_faulty_one_when_any_single_value_is_wrong(name: str, value: str) -> None:
    fault = {"value": value}
    found = run(name, fault)
    if not found.record.parted:  # a normalisation behind it took the factor out
        assert name in ("attention", "convolution")
        assert found.record.worst is not None
        return
    record = found.record
    graph = small_graph(name)
    assert record.first is not None
    assert record.first.value == value
    assert value in [output.name for output in graph.nodes[record.first.node].outputs]
    assert list(graph.nodes)[record.first.position] == record.first.node
    assert (record.first.error_in or 0) <= record.tolerance < (record.first.error_out or math.inf)
    assert record.found_by == "exposing"
    assert record.reproduction is not None
    assert record.reproduction.extent == "node"
    assert record.first.node in record.reproduction.nodes
    check_reproduces(found, fault)
    assert from_json(to_json(record), Divergence, "the record") == record


def test_outputs_agree_when_nothing_is_wrong() -> None:
    found = run("attention", precision="bf16")
    record = found.record
    assert not record.parted
    assert found.model is None
    assert record.first is None
    assert record.reproduction is None
    assert record.found_by == ""
    assert (record.tolerance, record.tolerance_from) == (0.25, "what rounding in bf16 explains")
    assert record.worst is not None
    # FakeBackend rounds outputs alone, and all are.
    assert 0 < (record.worst.error_out or 0) <= 2**-8
    assert record.worst.value != "y"
    assert record.n_compared == 7
    assert record.worst_output is not None
    assert record.worst_output.name == "y"


def test_bisecting_finds_the_fused_nodes_when_exposing_hides_the_fault() -> None:
    fault = {"value": "r1", "fused": ["m1"]}
    found = run("chain", fault)
    record = found.record
    assert record.found_by == "bisecting"
    assert record.first is not None
    assert (record.first.value, record.first.error_in) == ("r1", 0)
    assert record.first.error_out == pytest.approx(0.5)
    assert any("nodes are not fused" in note for note in record.notes)
    assert record.reproduction is not None
    assert record.reproduction.extent == "part"
    assert record.reproduction.nodes == ("matmul_2", "relu_3")
    check_reproduces(found, fault)


def test_bisecting_goes_on_when_prefixes_do_not_run() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["v0"])]
    nodes += [helper.make_node("Softplus", [f"v{i}"], [f"v{i + 1}"]) for i in range(12)]
    # Two values cross each cut but the first.
    nodes.append(helper.make_node("Add", ["v0", "v12"], ["y"]))
    graph = graph_of(nodes, [2, 3], "y")
    found = run(graph, {"value": "v7"}, most_outputs=1)
    assert found.record.parted
    assert found.record.first is not None
    assert found.record.found_by == "bisecting"
    # No cut between the first and the last node runs.
    assert found.record.first.value == "y"
    assert "outputs are too many" in found.record.notes[0]
    assert found.record.growth == ()
    assert found.record.reproduction is not None
    # One value at a time runs, and that is how the reproduction grows.
    assert found.record.reproduction.nodes[0] == "Softplus_7"
    check_reproduces(found, {"value": "v7"})


def test_smallest_part_is_the_prefix_when_the_fault_needs_many_nodes() -> None:
    fault = {"value": "r1", "n_nodes": 4}
    found = run("chain", fault)
    assert found.record.reproduction is not None
    assert found.record.reproduction.extent == "prefix"
    assert found.record.reproduction.nodes == ("matmul_0", "relu_1", "matmul_2", "relu_3")
    assert found.record.reproduction.inputs_from == ""
    check_reproduces(found, fault)


def test_reproduction_is_the_model_when_nothing_smaller_parts() -> None:
    fault = {"value": "a", "n_nodes": 2}
    found = run("two_outputs", fault)
    record = found.record
    assert [output.name for output in record.outputs] == ["b", "a"]
    assert record.reproduction is not None
    assert record.reproduction.extent == "model"
    assert [output.name for output in record.reproduction.outputs] == ["a"]
    check_reproduces(found, fault)


def test_first_node_is_where_the_tolerance_is_crossed_when_the_error_grows_slowly() -> None:
    nodes = [
        helper.make_node("Neg", [f"v{i}" if i else "x"], [f"v{i + 1}"], name=f"n{i + 1}") for i in range(9)
    ]
    graph = graph_of(nodes, [4], "v9")
    faults = [{"value": f"v{i + 1}", "factor": 1.001} for i in range(9)]
    found = run(graph, *faults, tolerance=0.0045)
    record = found.record
    assert record.first is not None
    assert record.first.node == "n5"  # 1.001^5 - 1 = 0.00501
    assert record.first.error_in == pytest.approx(1.001**4 - 1, rel=1e-3)
    assert record.first.growth == pytest.approx(1.25, rel=1e-2)
    assert record.growth[0].node == "n1"
    assert record.growth[0].growth == pytest.approx(0.001 / 2**-24, rel=1e-2)
    assert len(record.growth) == 5
    assert record.reproduction is not None
    assert record.reproduction.nodes == ("n1", "n2", "n3", "n4", "n5")
    shorter = run(graph, *faults, {"value": "v9", "factor": 1.01}, tolerance=0.0045)
    assert shorter.record.growth[1].node == "n9"
    # The first part that was found is grown from the node that crosses, not from the one that adds most.
    assert shorter.record.first == record.first


def test_first_node_is_no_passing_one_when_its_error_does_not_reach_the_end() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["a"], name="exact"),
        helper.make_node("Sub", ["x", "a"], ["small"], name="cancels"),
        helper.make_node("Add", ["x", "small"], ["b"], name="sum"),
        helper.make_node("Neg", ["b"], ["y"], name="culprit"),
    ]
    graph = graph_of(nodes, [4], "y", one=np.array(1.001, np.float32))
    found = run(graph, {"value": "small", "factor": 1.3}, {"value": "y", "factor": 1.01})
    assert found.record.worst is not None
    assert found.record.worst.node == "cancels"
    assert found.record.first is not None
    assert found.record.first.node == "culprit"


def test_difference_is_infinite_when_one_side_has_nan() -> None:
    fault = {"value": "r0", "factor": math.nan}
    found = run("chain", fault)
    assert found.record.first is not None
    assert (found.record.first.value, found.record.first.error_out) == ("r0", None)
    assert found.record.outputs[0].relative_l2 is None
    assert found.record.outputs[0].n_nonfinite == 32
    assert found.record.growth == ()
    (note,) = found.record.notes
    assert note.startswith("infinitely far apart though their inputs are not")
    assert note.endswith(": relu_1 (Relu)")
    check_reproduces(found, fault)


def test_part_grows_to_inputs_without_nan_when_both_sides_compute_nan() -> None:
    nodes = [
        helper.make_node("Div", ["x", "x"], ["q"], name="n0"),
        helper.make_node("Neg", ["q"], ["y"], name="n1"),
    ]
    graph = graph_of(nodes, [3], "y")
    fault = {"value": "y"}
    zeros = sources.resolve(graph, {"x": np.zeros(3, np.float32)})
    assert not compare(zeros, pair(fault)).record.parted  # NaN on both sides
    found = compare(sources.resolve(graph, {"x": np.array([0, 2, 3], np.float32)}), pair(fault))
    assert found.record.first is not None
    assert found.record.first.node == "n1"
    assert found.record.reproduction is not None
    # 0/0 is NaN and no model is given NaN.
    assert found.record.reproduction.nodes == ("n0", "n1")
    check_reproduces(found, fault)


def test_values_are_compared_in_parts_when_memory_is_short() -> None:
    fault = {"value": "b"}
    whole, found = run("residual", fault).record, run("residual", fault, budget_bytes=1200).record
    assert any("were compared in 3 parts" in note for note in found.notes)  # 576 bytes each
    assert whole.notes == ()
    assert found.first == whole.first
    assert found.growth == whole.growth
    assert found.n_compared == whole.n_compared == 5


def test_chunks_hold_every_value_once_when_one_alone_is_too_large() -> None:
    cutter = Cutter(small_graph("attention"))
    job = Job(cutter, {}, pair(), 0.1, ("y",), Silent(), budget_bytes=100)
    chunks = list(chunked(job))
    assert [value for chunk in chunks for value in chunk] == list(cutter.values)
    assert all(len(chunk) == 1 for chunk in chunks)  # each has at least 100 bytes


def test_sequences_and_strings_are_left_out_when_the_model_has_them() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="r"),
        helper.make_node("SplitToSequence", ["r"], ["s"], axis=0, keepdims=0, name="split"),
        helper.make_node("SequenceAt", ["s", "at"], ["e"], name="at"),
        helper.make_node("Neg", ["e"], ["y"], name="neg"),
    ]
    graph = graph_of(nodes, [2, 3], "y", at=np.array(1))
    fault = {"value": "e"}
    found = run(graph, fault)
    record = found.record
    assert (record.n_compared, record.n_left_out) == (3, 1)
    assert record.first is not None
    assert record.first.node == "at"
    assert record.reproduction is not None
    assert record.reproduction.nodes == ("split", "at")  # a sequence cannot be given as an input
    check_reproduces(found, fault)


def test_control_flow_is_one_node_when_its_branch_reads_from_around_it() -> None:
    def branch(op: str) -> onnx.GraphProto:
        end = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2, 3])
        return helper.make_graph([helper.make_node(op, ["r"], ["inner"])], op, [], [end])

    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="before"),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], name="positive"),
        helper.make_node(
            "If", ["positive"], ["i"], then_branch=branch("Neg"), else_branch=branch("Exp"), name="if"
        ),
        helper.make_node("Exp", ["i"], ["y"], name="after"),
    ]
    graph = graph_of(nodes, [2, 3], "y", zero=np.array(0, np.float32))
    fault = {"value": "i"}
    found = run(graph, fault)
    assert found.record.first is not None
    assert found.record.first.node == "if"
    assert found.model is not None
    assert {spec.name for spec in found.model.signature.inputs} == {"r", "positive"}
    check_reproduces(found, fault)


def test_reproduction_states_shapes_when_they_depend_on_values() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["at"], name="nonzero"),
        helper.make_node("Cast", ["at"], ["f"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Neg", ["f"], ["y"], name="neg"),
    ]
    fault = {"value": "f"}
    found = run(graph_of(nodes, [2, 3], "y"), fault)
    assert found.model is not None
    assert [str(spec) for spec in found.model.signature.inputs] == ["at: int64[2, 6]"]
    assert [str(spec) for spec in found.model.signature.outputs] == ["f: float32[2, 6]"]
    check_reproduces(found, fault)


def test_reproduction_takes_wide_inputs_when_the_type_has_no_place_in_a_file() -> None:
    fault = {"value": "y"}
    graph = small_graph("bfloat16")
    found = run(graph)
    assert not found.record.parted
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Neg", ["b"], ["n"]),
    ]
    nodes.append(helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT))
    found = run(graph_of(nodes, [4], "y"), fault)
    assert found.inputs is not None
    assert found.inputs["n"].dtype == np.float32
    check_reproduces(found, fault)


def test_reference_is_the_measure_when_it_is_the_second_side() -> None:
    subject = sources.resolve(small_graph("chain"))
    sides = (side("faulty", Faulty(faults=[{"value": "r2", "factor": 2}])), ReferenceSide(Silent()))
    record = compare(subject, Pair(*sides)).record
    assert record.against == "reference"
    # Measured against the faulty side it would be 0.5.
    assert record.outputs[0].relative_l2 == pytest.approx(1)
    assert record.reproduction is not None
    assert record.reproduction.inputs_from == "reference"


def test_a_side_is_named_when_it_cannot_run_the_model() -> None:
    subject = sources.resolve(small_graph("two_outputs"))
    with pytest.raises(BackendError, match=r"^faulty cannot compute 'two_outputs': 2 outputs are too many$"):
        compare(subject, pair(most_outputs=1))


def test_a_backend_is_started_anew_when_it_has_been_sent_many_weights() -> None:
    started = []

    def start() -> FakeBackend:
        started.append(FakeBackend())
        return started[-1]

    device = FakeBackend().discover()[0]
    graph = small_graph("chain")
    tried = TargetSide("one", device, Configuration.of("fp32"), start, restart_bytes=2 * graph.weight_bytes)
    inputs = sources.resolve(graph).inputs
    expected = reference_outputs(graph.to_proto(), {"x": inputs[0]})
    for _ in range(5):
        np.testing.assert_array_equal(tried.answers(graph, inputs)[0], expected["r2"])
    assert len(started) == 3


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_tolerance_is_refused_when_it_is_no_error(tolerance: float) -> None:
    with pytest.raises(UserError, match="is no relative error; expected a number of 0 or more"):
        diff("demo:digits", targets=["a", "b"], tolerance=tolerance)


def test_targets_are_refused_when_there_are_not_two(plugins: Plugins) -> None:
    with pytest.raises(TargetError, match="1 targets were given; expected two, or one and 'reference'"):
        diff("demo:digits", targets=["reference"])
    with pytest.raises(TargetError, match="both targets are 'reference'; give two different ones"):
        diff("demo:digits", targets=["reference", "reference"])
