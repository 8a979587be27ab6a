"""Plans over the real backends: tensors pass between them, in one process and in a worker's child."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper

from hal import plugins
from hal.backend import Backend, Configuration, KernelTimes, Tensor
from hal.errors import TargetError
from hal.executor.backend import PLAN, PlanBackend, Spot, open_places, plan_ref, plan_target
from hal.executor.executor import Place, compile_plan
from hal.executor.partitions import Piece
from hal.graph.model import Graph
from hal.tensor import as_numpy
from hal.testing import example_inputs, small_graph, true_outputs
from hal.worker import WorkerBackend
from hal_cpu.backend import CpuBackend
from hal_onnxruntime.backend import OnnxRuntimeBackend
from hal_openvino.backend import OpenVinoBackend

NAMES = ("cpu", "onnxruntime", "openvino")
PAIRS = list(itertools.product(NAMES, NAMES))
BACKENDS: dict[str, type[Backend]] = {
    "cpu": CpuBackend,
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
}


@pytest.fixture(scope="module")
def spots() -> dict[str, Spot]:
    """The processor as each backend sees it."""
    found = {}
    for name, backend in BACKENDS.items():
        device = next(d for d in backend().discover() if d.id == "cpu:0" and not d.variant)
        found[f"cpu:0/{name}"] = Spot(ref=plugins.reference(name), device=device)
    return found


@pytest.fixture(scope="module")
def places(spots: dict[str, Spot]) -> dict[str, Place]:
    return open_places(spots)


def in_two(graph: Graph, first: str, second: str) -> list[Piece]:
    nodes = tuple(graph.nodes)
    half = len(nodes) // 2
    return [Piece(f"cpu:0/{first}/fp32", nodes[:half]), Piece(f"cpu:0/{second}/fp32", nodes[half:])]


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("name", ["convolution", "attention", "residual"])
def test_answers_are_right_when_a_graph_is_split_between_backends(
    places: dict[str, Place], name: str, first: str, second: str
) -> None:
    graph = small_graph(name)
    executor = compile_plan(graph, in_two(graph, first, second), places)
    inputs = example_inputs(graph)
    for _ in range(2):
        for got, want in zip(executor.run(inputs), true_outputs(graph, inputs), strict=True):
            np.testing.assert_allclose(as_numpy(got), want, rtol=1e-4, atol=1e-5)
    executor.close()


def bfloat16_between() -> Graph:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="h", to=TensorProto.BFLOAT16),
        helper.make_node("Transpose", ["h"], ["i"], name="i"),
        helper.make_node("Cast", ["i"], ["y"], name="y", to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 5))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 3))
    proto = helper.make_graph(nodes, "between", [x], [y])
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_bfloat16_passes_between_backends(places: dict[str, Place], first: str, second: str) -> None:
    graph = bfloat16_between()
    pieces = [Piece(f"cpu:0/{first}/fp32", ("h", "i")), Piece(f"cpu:0/{second}/fp32", ("y",))]
    executor = compile_plan(graph, pieces, places)
    inputs = example_inputs(graph)
    np.testing.assert_array_equal(as_numpy(executor.run(inputs)[0]), true_outputs(graph, inputs)[0])
    executor.close()


def test_outputs_stay_as_they_are_when_later_runs_come(places: dict[str, Place]) -> None:
    graph = small_graph("residual")
    executor = compile_plan(graph, in_two(graph, "openvino", "cpu"), places)
    held: list[tuple[Tensor, np.ndarray]] = []
    for seed in range(3):
        inputs = example_inputs(graph, seed)
        held.append((executor.run(inputs)[0], true_outputs(graph, inputs)[0]))
    for got, want in held:
        np.testing.assert_allclose(as_numpy(got), want, rtol=1e-4, atol=1e-5)
    executor.close()


# --- in a worker --------------------------------------------------------------------------------------


def test_a_worker_carries_out_plans_when_it_is_given_them(spots: dict[str, Spot]) -> None:
    graph = small_graph("convolution")
    plans = {"one": in_two(graph, "cpu", "openvino"), "two": in_two(graph, "onnxruntime", "cpu")}
    inputs = example_inputs(graph)
    with WorkerBackend(plan_ref(spots, plans)) as backend:
        assert list(backend.discover()) == [PLAN]
        for name, pieces in plans.items():
            executable = backend.compile(PLAN, graph, plan_target(name, pieces).configuration)
            (got,) = executable.run(inputs)
            np.testing.assert_allclose(as_numpy(got), true_outputs(graph, inputs)[0], rtol=1e-4, atol=1e-5)
            told = executable.ability(KernelTimes)
            assert told is not None
            assert [kernel.name for kernel in told.kernel_runs(inputs, 2).kernels] == ["0", "1"]


def test_a_plan_is_judged_by_its_least_precise_part() -> None:
    def precision(*precisions: str) -> str:
        pieces = [Piece(f"cpu:0/cpu/{one}", ("n",)) for one in precisions]
        return plan_target("p", pieces).configuration.precision

    assert precision("fp32", "fp32") == "fp32"
    assert precision("fp32", "bf16") == "bf16"
    assert precision("fp16", "fp32") == "fp16"
    assert precision("fp16", "bf16") == "bf16"


def test_nodes_are_judged_by_the_place_that_has_them(places: dict[str, Place]) -> None:
    graph = small_graph("convolution")
    backend = PlanBackend(places, {"p": in_two(graph, "cpu", "openvino")})
    assert all(answer.yes for answer in backend.capability(PLAN, graph, "fp32").values())
    with pytest.raises(TargetError, match="there is no plan 'q'; expected one of p"):
        backend.compile(PLAN, graph, Configuration.of("fp32", {"plan": "q"}))


# --- threads that do not spin -------------------------------------------------------------------------


def test_pytorch_keeps_no_thread_busy_when_spinning_is_off(spots: dict[str, Spot]) -> None:
    from hal_cpu import spinning

    if not spinning.rest():
        pytest.skip("PyTorch's threads are not GNU OpenMP's here")
    n_threads = threading.active_count()
    assert spinning.rest()  # once is enough
    assert threading.active_count() == n_threads
    graph = small_graph("convolution")
    backend = CpuBackend()
    executable = backend.compile(
        backend.discover()[0], graph, Configuration.of("fp32", {"spinning": False, "threads": 2})
    )
    inputs = example_inputs(graph)
    np.testing.assert_allclose(
        as_numpy(executable.run(inputs)[0]), true_outputs(graph, inputs)[0], rtol=1e-4, atol=1e-5
    )
    executable.close()
