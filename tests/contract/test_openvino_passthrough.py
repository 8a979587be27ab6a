"""Graphs on the openvino backend whose outputs are their inputs: through nodes that do nothing, or bare."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import pytest
from onnx import TensorProto, helper
from openvino import opset16

from hal.backend import (
    AsyncRun,
    BlobLoader,
    CompiledBlob,
    Configuration,
    Device,
    Executable,
    KernelTimes,
    Signature,
    TensorSpec,
)
from hal.errors import BackendError
from hal.graph.model import Graph
from hal.tensor import Array, Tensor, as_numpy
from hal_openvino.atlas import Atlas
from hal_openvino.backend import OpenVinoBackend
from hal_openvino.blobs import Stamp
from hal_openvino.executable import OpenVinoExecutable
from hal_openvino.lanes import COPY_BELOW_BYTES
from hal_openvino.passthrough import separate

FP32 = Configuration.of("fp32", {"threads": 1})

#: Nodes as (operator, inputs, outputs); the graph's inputs; its outputs, each with the value expected:
#: an input's name, or ``relu`` and an input's name.
GRAPHS = {
    "dropout": ([("Dropout", "a", "y")], "a", {"y": "a"}),
    "two_dropouts": ([("Dropout", "a", "t"), ("Dropout", "t", "y")], "a", {"y": "a"}),
    "dropout_before": ([("Dropout", "a", "t"), ("Relu", "t", "y")], "a", {"y": "relu a"}),
    "dropouts_after": (
        [("Relu", "a", "t"), ("Dropout", "t", "y"), ("Dropout", "t", "z")],
        "a",
        {"z": "relu a", "t": "relu a", "y": "relu a"},
    ),
    "double": ([("Dropout", "a", "y"), ("Dropout", "a", "z")], "a", {"y": "a", "z": "a"}),
    "beside": ([("Dropout", "a", "y"), ("Relu", "a", "z")], "a", {"y": "a", "z": "relu a"}),
    "crossed": ([("Dropout", "b", "y"), ("Dropout", "a", "z")], "abc", {"y": "b", "z": "a"}),
    "identity": ([("Identity", "a", "y"), ("Identity", "a", "z")], "a", {"y": "a", "z": "a"}),
    "sum_of_one": ([("Sum", "a", "y")], "a", {"y": "a"}),
    "direct": ([("Relu", "a", "y")], "ab", {"a": "a", "y": "relu a", "b": "b"}),
    "direct_and_dropout": ([("Dropout", "a", "y")], "a", {"a": "a", "y": "a"}),
    "one_tensor_twice": ([("Relu", "a", "y"), ("Dropout", "y", "z")], "a", {"z": "relu a", "y": "relu a"}),
}
#: One shape on each side of the limit below which tensors are copied instead of shared.
SHAPES = ((2, 3), (COPY_BELOW_BYTES // 64, 64))

cases = pytest.mark.parametrize("name", GRAPHS)
sizes = pytest.mark.parametrize("shape", SHAPES, ids=("small", "large"))


class Case:
    """A compiled graph, and what it must answer."""

    def __init__(self, backend: OpenVinoBackend, cpu: Device, name: str, shape: tuple[int, int]) -> None:
        nodes, self.inputs, self.outputs = GRAPHS[name]
        self.shape = shape

        def described(names: Sequence[str]) -> list[object]:
            return [helper.make_tensor_value_info(word, TensorProto.FLOAT, shape) for word in names]

        proto = helper.make_graph(
            [helper.make_node(op, [x], [y], name=f"make_{y}") for op, x, y in nodes],
            name,
            described(self.inputs),
            described(list(self.outputs)),
        )
        opset = [helper.make_opsetid("", 17)]
        self.graph = Graph.load(helper.make_model(proto, opset_imports=opset, ir_version=9))
        self.executable: Executable = backend.compile(cpu, self.graph, FP32)

    def feed(self, seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(self.shape).astype(np.float32) for _ in self.inputs]

    def expected(self, fed: Sequence[Array]) -> list[Array]:
        known = dict(zip(self.inputs, fed, strict=True))
        known |= {f"relu {name}": np.maximum(array, 0) for name, array in known.items()}
        return [known[value].copy() for value in self.outputs.values()]


@pytest.fixture(scope="module")
def backend() -> OpenVinoBackend:
    return OpenVinoBackend()


@pytest.fixture(scope="module")
def cpu(backend: OpenVinoBackend) -> Device:
    return next(device for device in backend.discover() if device.kind == "cpu")


@pytest.fixture
def case(backend: OpenVinoBackend, cpu: Device, name: str, shape: tuple[int, int]) -> Case:
    return Case(backend, cpu, name, shape)


def assert_same(results: Sequence[Tensor], expected: Sequence[Array]) -> None:
    for result, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(as_numpy(result), want)


@cases
@sizes
def test_run_returns_the_inputs_when_nodes_pass_them_through(case: Case) -> None:
    kept = []
    for seed in (1, 2, 3):
        fed = case.feed(seed)
        before = [array.copy() for array in fed]
        kept.append((case.executable.run(fed), case.expected(before)))
        assert_same(fed, before)
    for results, expected in kept:  # and no later run wrote into an earlier one's results
        assert_same(results, expected)


@cases
@sizes
def test_run_fills_bound_outputs_when_nodes_pass_inputs_through(case: Case) -> None:
    for seed in (1, 2):
        fed = case.feed(seed)
        expected = case.expected(fed)
        before = [array.copy() for array in fed]
        bound = [np.full(case.shape, np.nan, np.float32) for _ in case.outputs]
        case.executable.run(fed, bound)
        assert_same(bound, expected)
        assert_same(fed, before)


@cases
@sizes
def test_submit_returns_the_inputs_when_nodes_pass_them_through(case: Case) -> None:
    assert isinstance(case.executable, AsyncRun)
    fed = [case.feed(seed) for seed in (1, 2)]
    expected = [case.expected(inputs) for inputs in fed]
    pending = [case.executable.submit(inputs) for inputs in fed]
    for run, want in zip(pending, expected, strict=True):
        assert_same(run.wait(), want)


@cases
@sizes
def test_run_returns_the_inputs_when_loaded_from_a_blob(
    backend: OpenVinoBackend, cpu: Device, case: Case
) -> None:
    assert isinstance(case.executable, CompiledBlob)
    loader: BlobLoader = backend
    again = loader.load_blob(cpu, case.executable.blob(), FP32)
    fed = case.feed(1)
    expected = case.expected(fed)
    assert_same(again.run(fed), expected)


@cases
@sizes
def test_kernel_runs_leave_inputs_and_later_runs_right_when_nodes_pass_through(case: Case) -> None:
    assert isinstance(case.executable, KernelTimes)
    fed = case.feed(1)
    before = [array.copy() for array in fed]
    runs = case.executable.kernel_runs(fed, 3)
    assert len(runs.run_ns) == 3
    assert {node for kernel in runs.kernels for node in kernel.nodes} <= set(case.graph.nodes)
    assert_same(fed, before)
    assert_same(case.executable.run(fed), case.expected(before))


@pytest.mark.parametrize("shape", SHAPES[1:], ids=("large",))
@pytest.mark.parametrize("name", ["dropouts_after"])
def test_kernels_belong_to_the_node_that_computes_when_dropouts_follow_it(case: Case) -> None:
    assert isinstance(case.executable, KernelTimes)
    kernels = case.executable.kernel_runs(case.feed(1), 1).kernels
    assert "make_t" in {node for kernel in kernels for node in kernel.nodes}


def stray_model() -> Any:
    parameter = opset16.parameter([2, 3], name="stray")
    parameter.output(0).set_names({"stray"})
    return openvino.Model([opset16.relu(parameter)], [parameter], "stray")


def test_separate_refuses_when_the_reader_names_an_input_that_the_graph_lacks(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    graph = Case(backend, cpu, "dropout", SHAPES[0]).graph
    message = "calls an input of model 'dropout' stray; expected to find one of a behind it: use another"
    with pytest.raises(BackendError, match=message):
        separate(graph, stray_model())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("y", "model reads stray, no input of the graph; expected a: compile the graph again"),
        ("yz", "OpenVINO kept 1 of 2 outputs: .*; use another backend"),
    ],
)
def test_executable_refuses_when_the_compiled_model_has_other_tensors(outputs: str, message: str) -> None:
    compiled = openvino.Core().compile_model(stray_model(), "CPU")
    inputs = "a" if outputs == "y" else ("stray",)
    signature = Signature(
        tuple(TensorSpec(name, "float32", (2, 3)) for name in inputs),
        tuple(TensorSpec(name, "float32", (2, 3)) for name in outputs),
    )
    stamp = Stamp(openvino="", device="", precision="fp32")
    atlas = Atlas(names=(), owners=(), operators={}, consumers={}, constant=frozenset())
    with pytest.raises(BackendError, match=message):
        OpenVinoExecutable(compiled, signature, atlas=atlas, stamp=stamp, instrument=lambda: compiled)
