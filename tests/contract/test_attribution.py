"""On every backend, kernels and folded nodes divide a graph: nothing is lost, and each time counts once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hal.backend import Backend, Configuration, Device, Kernel, KernelRuns, KernelTimes
from hal.graph.facts import facts
from hal.graph.model import Graph
from hal.profiling.kernels import table
from hal.testing.graphs import GRAPHS, example_inputs, small_graph
from hal_cpu.backend import CpuBackend
from hal_onnxruntime.backend import OnnxRuntimeBackend
from hal_openvino.backend import OpenVinoBackend

N_RUNS = 3
#: What only renames a tensor: where nothing is computed there is no kernel that could have it.
VIEWS = {"Identity", "Reshape"}
TARGETS = ("cpu/fp32", "cpu/bf16", "openvino/fp32", "openvino/bf16", "onnxruntime/fp32")


@functools.cache
def opened(name: str) -> tuple[Backend, Device]:
    kinds: dict[str, type[Backend]] = {
        "cpu": CpuBackend,
        "openvino": OpenVinoBackend,
        "onnxruntime": OnnxRuntimeBackend,
    }
    backend = kinds[name]()
    return backend, next(d for d in backend.discover() if d.kind == "cpu" and not d.variant)


def measure(graph: Graph, target: str, mode: str = "") -> KernelRuns | None:
    """Instrumented runs, or None where the backend does not take the graph."""
    name, _, precision = target.partition("/")
    backend, device = opened(name)
    if precision not in device.precisions:
        pytest.skip(f"this processor does not compute in {precision}")
    if not all(answer.yes for answer in backend.capability(device, graph, precision).values()):
        return None
    options = {"threads": 1, **({"mode": mode} if mode else {})}
    executable = backend.compile(device, graph, Configuration.of(precision, options))
    timer = executable.ability(KernelTimes)
    assert timer is not None
    runs = timer.kernel_runs(example_inputs(graph), N_RUNS)
    executable.close()
    return runs


def check(runs: KernelRuns, graph: Graph) -> None:
    for kernel in runs.kernels:
        assert kernel.nodes or copies_an_input(kernel, graph), f"{kernel.name} is unattributed"
        assert len(set(kernel.nodes)) == len(kernel.nodes)
        assert set(kernel.nodes) <= set(graph.nodes)
    covered = {node for kernel in runs.kernels for node in kernel.nodes}
    summary = table(runs, facts(graph))
    assert not covered & set(runs.folded)
    assert not summary.unknown
    assert covered | set(runs.folded) == set(graph.nodes)
    lost = [name for name in computed(graph) if name not in covered]
    assert not runs.kernels or not lost, f"{lost} are folded, but depend on the inputs and are needed"
    assert all(graph.nodes[name].op_type in VIEWS for name in lost)
    # Each kernel's time once: all of them fit into the runs, give or take the tick of a clock (1 us).
    assert len({kernel.name for kernel in runs.kernels}) == len(runs.kernels)
    total_ns = sum(sum(kernel.durations_ns) for kernel in runs.kernels)
    assert total_ns <= sum(runs.run_ns) + 1000 * N_RUNS * len(runs.kernels)
    assert summary.unattributed_ns == sum(cost.median_ns for cost in summary.kernels if not cost.nodes)
    assert summary.total_ns == sum(cost.median_ns for cost in summary.kernels)


def copies_an_input(kernel: Kernel, graph: Graph) -> bool:
    """Whether it is what OpenVINO adds where an output is an input: no node of the graph does that."""
    ports = graph.signature
    passed = {spec.name for spec in ports.inputs} & {spec.name for spec in ports.outputs}
    return bool(passed) and kernel.type.startswith("Identity/")


def computed(graph: Graph) -> list[str]:
    """Nodes that an output needs and whose results depend on the inputs."""
    inner = graph.model.graph
    known = {str(name) for name in inner.initializers}
    varying = []
    for name, node in graph.nodes.items():
        read = [str(value.name) for value in node.inputs if value is not None]
        if not node.attributes.get("then_branch") and all(value in known for value in read):
            known.update(str(value.name) for value in node.outputs)
        else:
            varying.append(name)
    needed = {str(value.name) for value in inner.outputs}
    found = []
    for name in reversed(varying):
        node = graph.nodes[name]
        if needed & {str(value.name) for value in node.outputs}:
            found.append(name)
            needed.update(str(value.name) for value in node.inputs if value is not None)
    return found[::-1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_kernels_divide_the_graph_when_it_is_small(name: str, target: str) -> None:
    graph = small_graph(name)
    runs = measure(graph, target)
    if runs is None:
        pytest.skip(f"{target} refuses {name}")
    check(runs, graph)
    assert runs.defines_units


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["convolution", "residual", "attention", "quantized", "conditional", "scalar"]
)
def test_kernels_divide_the_graph_when_it_is_compiled_by_inductor(name: str, precision: str) -> None:
    graph = small_graph(name)
    runs = measure(graph, f"cpu/{precision}", "compiled")
    assert runs is not None
    check(runs, graph)
    assert not runs.defines_units


Layer = tuple[str, int, int]


@st.composite
def layers(draw: st.DrawFn) -> list[Layer]:
    """Operators, each with the positions (from the end) of the values it reads."""
    operators = (
        "Relu",
        "Sigmoid",
        "Erf",
        "Identity",
        "Reshape",
        "Transpose",
        "Add",
        "Mul",
        "MatMul",
        "QDQ",
        "W",
    )
    layer = st.tuples(st.sampled_from(operators), st.integers(0, 3), st.integers(0, 5))
    return draw(st.lists(layer, min_size=1, max_size=9))


def build(made: Sequence[Layer]) -> Graph:
    """float32[4, 4] all through: a graph with branches, views, constants, dead ends and two outputs."""
    generator = np.random.default_rng(0)
    weights = {
        "w": generator.normal(size=(4, 4)).astype(np.float32) / 2,
        "size": np.array([4, 4], np.int64),
        "step": np.array(1 / 32, np.float32),
        "zero": np.array(128, np.uint8),
    }
    values, nodes, constant = ["x", "w"], [], {"w"}
    for index, (operator, first, second) in enumerate(made):
        one, other, to = values[-1 - first % len(values)], values[-1 - second % len(values)], f"v{index}"
        reads = (one, other) if operator in ("Add", "Mul", "MatMul") else (one,)
        if constant.issuperset(reads):
            constant.add(to)
        # OpenVINO 2026.4 fails to compile some chains of QuantizeLinear on constants.
        if operator == "QDQ" and one not in constant:
            nodes.append(helper.make_node("QuantizeLinear", [one, "step", "zero"], [f"q{index}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{index}", "step", "zero"], [to]))
        elif operator in ("Add", "Mul", "MatMul"):
            nodes.append(helper.make_node(operator, [one, other], [to]))
        elif operator == "Reshape":
            nodes.append(helper.make_node(operator, [one, "size"], [to]))
        elif operator == "W":
            nodes.append(helper.make_node("MatMul", [one, "w"], [to]))
        else:
            nodes.append(helper.make_node("Abs" if operator == "QDQ" else operator, [one], [to]))
        values.append(to)
    # The last value may be a constant; an output that is not one keeps the input in use.
    nodes.append(helper.make_node("Add", ["x", values[-1]], ["y"]))
    nodes.append(helper.make_node("Neg", [values[len(values) // 2]], ["z"]))
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type.lower()}_{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xyz"]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    proto = helper.make_graph(nodes, "drawn", ends[:1], ends[1:], tensors)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return Graph.load(model, name="drawn")


@pytest.mark.parametrize("target", ["cpu/fp32", "openvino/fp32", "onnxruntime/fp32"])
@settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.differing_executors]
)
@given(made=layers())
@example(made=[("Identity", 0, 0)])
@example(made=[("W", 1, 0), ("Reshape", 0, 0), ("Identity", 0, 0)])
@example(made=[("QDQ", 1, 0), ("W", 0, 0), ("QDQ", 0, 0), ("Transpose", 0, 0), ("QDQ", 0, 0)])
def test_kernels_divide_the_graph_when_it_is_drawn(target: str, made: list[Layer]) -> None:
    graph = build(made)
    runs = measure(graph, target)
    assert runs is not None
    check(runs, graph)
