"""Kernel times of the onnxruntime plugin: reading profiles, counting once, mapping to nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from onnx import TensorProto, helper

from hal.backend import Configuration, KernelRuns, KernelTimes
from hal.errors import BackendError
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal_onnxruntime import attribution, kernels
from hal_onnxruntime.attribution import FlatGraph
from hal_onnxruntime.backend import OnnxRuntimeBackend
from tests.models import MODELS


def event(
    name: str, start: int, duration: int, op: str = "", cat: str = "Node", **words: Any
) -> dict[str, Any]:
    """An event as ONNX Runtime 1.32 writes it: all fields present, times in microseconds."""
    arguments = {"op_name": op, "provider": "CPUExecutionProvider", **words} if cat == "Node" else {}
    return {
        "cat": cat,
        "pid": 1,
        "tid": 1,
        "dur": duration,
        "ts": start,
        "ph": "X",
        "name": name,
        "args": arguments,
    }


def recorded() -> list[dict[str, Any]]:
    """Two runs after a warm-up: a Conv, and an If whose branch runs an LSTM and a Relu; Loop-like twice."""
    events = [event("session_initialization", 0, 50, cat="Session")]
    for start in (100, 300, 500):
        late = start // 100
        events += [
            event("c_kernel_time", start + 1, 40 + late, "Conv"),
            event("lstm_kernel_time", start + 60, 30, "LSTM"),
            event("relu_kernel_time", start + 91, 4, "Relu"),
            event("relu_kernel_time", start + 95, 5, "Relu"),
            event("SequentialExecutor::Execute", start + 59, 42, cat="Session"),
            event("if_kernel_time", start + 55, 50, "If"),
            event("SequentialExecutor::Execute", start, 110, cat="Session"),
            event("model_run", start, 120, cat="Session"),
        ]
    return events


def test_profile_gives_a_duration_per_run_when_runs_follow_a_warm_up() -> None:
    profiled = kernels.read_profile(recorded(), 2)
    assert profiled.run_ns == (120_000, 120_000)
    durations = {kernel.name: kernel.durations_ns for kernel in profiled.kernels}
    assert durations == {
        "c": (43_000, 45_000),
        "if": (50_000, 50_000),
        "lstm": (30_000, 30_000),
        "relu": (9_000, 9_000),
    }
    assert profiled.kernels[0].op == "Conv"
    assert profiled.kernels[0].provider == "CPUExecutionProvider"


def test_profile_is_refused_when_it_holds_fewer_runs() -> None:
    with pytest.raises(
        BackendError, match="the profile holds 3 runs of 4: the runtime keeps a million events"
    ):
        kernels.read_profile(recorded(), 4)


def test_inner_kernels_are_taken_off_when_a_node_holds_a_subgraph() -> None:
    profiled = kernels.read_profile(recorded(), 1)
    own = kernels.own_times(profiled.kernels, {"lstm": "if", "relu": "if"})
    assert {kernel.name: kernel.durations_ns[0] for kernel in own} == {
        "c": 45_000,
        "if": 11_000,
        "lstm": 30_000,
        "relu": 9_000,
    }
    assert sum(kernel.durations_ns[0] for kernel in own) == 45_000 + 50_000


def test_own_time_is_not_negative_when_rounding_makes_the_parts_longer() -> None:
    outer = kernels.KernelEvent("if", "If", "", (2_000,))
    inner = kernels.KernelEvent("relu", "Relu", "", (3_000,))
    assert kernels.own_times([outer, inner], {"relu": "if"})[0].durations_ns == (0,)


def flat(nodes: list[tuple[str, str, str, str]], outputs: str, weights: str = "") -> FlatGraph:
    """A graph from (name, op, inputs, outputs); inputs of the graph are those that nothing makes."""
    made = [
        helper.make_node(
            op.rpartition("::")[2], read.split(), written.split(), name=name, domain=op.rpartition("::")[0]
        )
        for name, op, read, written in nodes
    ]
    produced = {value for node in made for value in node.output}
    needed = {value for node in made for value in node.input} - produced - set(weights.split())
    graph = helper.make_graph(
        made,
        "flat",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in sorted(needed)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in outputs.split()],
        [helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0]) for name in weights.split()],
    )
    return FlatGraph(onnx_ir.serde.deserialize_graph(graph))


def test_fusion_covers_what_lies_between_its_boundaries() -> None:
    before = flat(
        [("m", "MatMul", "x w", "a"), ("b", "Add", "a bias", "c"), ("r", "Relu", "c", "y")], "y", "w bias"
    )
    after = flat([("m/MatMulAddFusion", "Gemm", "x w bias", "c"), ("r", "Relu", "c", "y")], "y", "w bias")
    assert attribution.node_covers(before, after) == {"m/MatMulAddFusion": ("m", "b"), "r": ("r",)}


def test_layout_moves_share_the_nodes_of_what_they_serve() -> None:
    before = flat([("c", "Conv", "x w", "a"), ("g", "Gelu", "a", "b"), ("d", "Conv", "b v", "y")], "y", "w v")
    after = flat(
        [
            ("ReorderInput", "com.microsoft.nchwc::ReorderInput", "x", "t0"),
            ("a_nchwc", "com.microsoft.nchwc::Conv", "t0 w2", "t1"),
            ("g", "Gelu", "t1", "t2"),
            ("y_nchwc", "com.microsoft.nchwc::Conv", "t2 v2", "t3"),
            ("ReorderOutput", "com.microsoft.nchwc::ReorderOutput", "t3", "y"),
        ],
        "y",
        "w2 v2",
    )
    assert attribution.has_layout_nodes(after)
    assert attribution.node_covers(before, after) == {
        "ReorderInput": ("c",),
        "a_nchwc": ("c",),
        "g": ("g",),
        "y_nchwc": ("d",),
        "ReorderOutput": ("d",),
    }


def test_moved_transpose_shares_its_nodes_when_names_do_not_tell_them_apart() -> None:
    before = flat([("t", "Transpose", "x", "a"), ("r", "Relu", "a", "y")], "y")
    after = flat([("r", "Relu", "x", "token"), ("moved", "Transpose", "token", "y")], "y")
    assert attribution.node_covers(before, after) == {"r": ("t", "r"), "moved": ("t", "r")}


def test_constants_are_folded_when_no_kernel_computes_them() -> None:
    before = flat(
        [("k", "Neg", "w", "minus"), ("a", "Add", "x minus", "y"), ("unused", "Abs", "x", "nothing")],
        "y",
        "w",
    )
    after = flat([("a", "Add", "x minus", "y")], "y", "minus")
    covers = attribution.node_covers(before, after)
    assert covers == {"a": ("a",)}
    assert attribution.folded_nodes(before, {"a"}) == ("k", "unused")


def test_vanished_nodes_go_to_their_readers_when_a_provider_compiled_the_rest() -> None:
    before = flat([("i", "Identity", "x", "a"), ("r", "Relu", "a", "b"), ("s", "Sigmoid", "b", "y")], "y")
    covers = {"EP_1": ("r", "s")}
    attribution.absorb(before, covers)
    assert set(covers["EP_1"]) == {"i", "r", "s"}


def pair(value: str) -> list[tuple[str, str, str, str]]:
    """QuantizeLinear and DequantizeLinear of a value."""
    return [
        (f"q_{value}", "QuantizeLinear", f"{value} s", f"{value}_8"),
        (f"d_{value}", "DequantizeLinear", f"{value}_8 s", f"{value}_f"),
    ]


def test_quantized_operator_has_the_pairs_around_it_and_no_neighbour_when_values_were_renamed() -> None:
    before = flat(
        [
            *pair("x"),
            ("c1", "Conv", "x_f w", "a"),
            ("r", "Relu", "a", "b"),
            *pair("b"),
            ("c2", "Conv", "b_f w", "c"),
            *pair("c"),
        ],
        "c_f",
        "w s",
    )
    after = flat(
        [
            ("q_x", "QuantizeLinear", "x s", "x_8"),
            ("Transpose_token_9", "Transpose", "x_8", "Transpose_token_9_out0"),
            ("c1_token_3", "QLinearConv", "Transpose_token_9_out0 w", "c1"),
            ("c2_token_4", "QLinearConv", "c1 w", "c2"),
            ("d_c", "DequantizeLinear", "c2 s", "c_f"),
        ],
        "c_f",
        "w s",
    )
    assert attribution.node_covers(before, after) == {
        "q_x": ("q_x",),
        "Transpose_token_9": ("d_x", "c1", "r", "q_b"),
        "c1_token_3": ("d_x", "c1", "r", "q_b"),
        "c2_token_4": ("d_b", "c2", "q_c"),
        "d_c": ("d_c",),
    }


def test_moved_pairs_are_mapped_when_their_names_tell_the_value() -> None:
    before = flat([("a", "Add", "x x", "v"), ("t", "Reshape", "v k", "u"), *pair("u")], "u_f", "k s")
    after = flat(
        [
            ("a", "Add", "x x", "v_pre_q"),
            ("v_q", "QuantizeLinear", "v_pre_q s", "v_q_to_dq"),
            ("t", "Reshape", "v_q_to_dq k", "u_8"),
            ("d_u/duplicated_token_2", "DequantizeLinear", "u_8 s", "u_f"),
        ],
        "u_f",
        "k s",
    )
    assert attribution.node_covers(before, after) == {
        "a": ("a",),
        "v_q": ("a",),
        "t": ("t", "q_u"),
        "d_u/duplicated_token_2": ("d_u",),
    }


@pytest.mark.parametrize("kernel", ["a_nchwc", "c", "c_token_12", "c/duplicated_token_3", "c/ConvAddFusion"])
def test_kernel_name_alone_points_to_a_node(kernel: str) -> None:
    before = flat([("c", "Conv", "x w", "a")], "a", "w")
    assert attribution.named_node(before, kernel) == "c"
    assert attribution.named_node(before, "other") == ""


def measure(graph: Graph, inputs: list[Any], n_runs: int = 3) -> tuple[KernelRuns, list[Any]]:
    backend = OnnxRuntimeBackend()
    device = next(device for device in backend.discover() if not device.variant)
    executable = backend.compile(device, graph, Configuration.of("fp32", {"threads": 1}))
    timer = executable.ability(KernelTimes)
    assert timer is not None
    answers = [np.array(answer) for answer in executable.run(inputs)]
    runs = timer.kernel_runs(inputs, n_runs)
    executable.close()
    return runs, answers


def test_kernels_in_a_branch_count_once_when_the_graph_has_an_if() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [256, 256])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [256, 256])
    branches = {}
    for name, op in (("then", "MatMul"), ("else", "Add")):
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [256, 256])
        node = helper.make_node(op, ["x", "x"], [f"{name}_y"], name=f"{name}_node")
        branches[f"{name}_branch"] = helper.make_graph([node], name, [], [out])
    condition = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    graph = helper.make_graph(
        [
            helper.make_node("If", ["go"], ["b"], name="choose", **branches),
            helper.make_node("Relu", ["b"], ["y"], name="r"),
        ],
        "branches",
        [x, condition],
        [y],
    )
    model = Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    runs, _ = measure(model, [np.ones((256, 256), np.float32), np.array(True)])
    by_name = {kernel.name: kernel for kernel in runs.kernels}
    assert set(by_name) == {"choose", "then_node", "r"}
    assert by_name["then_node"].nodes == ("choose",)
    for index, run_ns in enumerate(runs.run_ns):
        assert sum(kernel.durations_ns[index] for kernel in runs.kernels) <= run_ns


@pytest.mark.parametrize(
    "name",
    [
        "ppocr_det_320",
        "ppocr_rec",
        "ppocr_cls",
        "magika",
        "silero_vad_op15",
        "silero_vad_op16",
        "silero_vad_op18",
    ],
)
def test_kernel_time_is_attributed_when_the_model_is_real(name: str) -> None:
    model = MODELS[name].require()
    graph = Graph.load(model.path()).bind(model.shapes)
    given = model.inputs()
    runs, answers = measure(graph, [given[spec.name] for spec in graph.signature.inputs])
    for answer, want in zip(answers, reference_outputs(graph.to_proto(), given).values(), strict=True):
        difference = np.linalg.norm(np.float64(answer) - np.float64(want))
        assert difference <= 1e-4 * np.linalg.norm(np.float64(want))
    total = sum(sum(kernel.durations_ns) for kernel in runs.kernels)
    known = sum(sum(kernel.durations_ns) for kernel in runs.kernels if kernel.nodes)
    assert known >= 0.98 * total
    assert 0 < total <= sum(runs.run_ns)
    covered = {node for kernel in runs.kernels for node in kernel.nodes}
    assert not covered & set(runs.folded)
    assert covered | set(runs.folded) == set(graph.nodes)
