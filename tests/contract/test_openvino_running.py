"""Executables of the openvino backend: precision, ownership of tensors, types, order and errors."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hal.backend import AsyncRun, Configuration, Device, Executable
from hal.errors import BackendError, InputError
from hal.graph.model import Graph
from hal.tensor import HostTensor, as_numpy
from hal_openvino.backend import OpenVinoBackend
from hal_openvino.lanes import COPY_BELOW_BYTES

FP32 = Configuration.of("fp32", {"threads": 1})


def tensor(name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> Graph:
    proto = helper.make_graph(nodes, "small", inputs, outputs, weights)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def product(n: int) -> tuple[Graph, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return graph_of(
        [node], [tensor("x", 8, n)], [tensor("y", 8, n)], [numpy_helper.from_array(weight, "w")]
    ), weight


def relu(*shape: int, dtype: int = TensorProto.FLOAT) -> Graph:
    node = helper.make_node("Relu", ["x"], ["y"], name="rectify")
    return graph_of([node], [tensor("x", *shape, dtype=dtype)], [tensor("y", *shape, dtype=dtype)])


#: One size on each side of the limit below which tensors are copied instead of shared.
SIZES = (16, 4 * COPY_BELOW_BYTES)


@pytest.fixture(scope="module")
def backend() -> OpenVinoBackend:
    return OpenVinoBackend()


@pytest.fixture(scope="module")
def cpu(backend: OpenVinoBackend) -> Device:
    return next(device for device in backend.discover() if device.kind == "cpu")


@pytest.fixture
def small(backend: OpenVinoBackend, cpu: Device) -> Executable:
    return backend.compile(cpu, relu(2, 3), FP32)


# --- precision -----------------------------------------------------------------------------------


def relative_error(backend: OpenVinoBackend, cpu: Device, precision: str) -> float:
    graph, weight = product(512)
    x = np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)
    executable = backend.compile(cpu, graph, Configuration.of(precision, {"threads": 1}))
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    return float(np.linalg.norm(as_numpy(executable.run([x])[0]) - exact) / np.linalg.norm(exact))


def test_fp32_is_ieee_when_the_runtime_would_lower_it(backend: OpenVinoBackend, cpu: Device) -> None:
    assert relative_error(backend, cpu, "fp32") < 2e-6


def test_bf16_really_computes_in_bf16_when_asked(backend: OpenVinoBackend, cpu: Device) -> None:
    if "bf16" not in cpu.precisions:
        pytest.skip("this CPU does not compute in bf16")
    assert 1e-3 < relative_error(backend, cpu, "bf16") < 1e-2


def test_denormals_survive_when_precision_is_fp32(small: Executable) -> None:
    x = np.full((2, 3), 1e-40, np.float32)
    np.testing.assert_array_equal(as_numpy(small.run([x])[0]), x)


# --- ownership -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_outputs_survive_when_run_again_and_closed(backend: OpenVinoBackend, cpu: Device, size: int) -> None:
    executable = backend.compile(cpu, relu(size), FP32)
    first = as_numpy(executable.run([np.full(size, 3, np.float32)])[0])
    second = as_numpy(executable.run([np.full(size, 5, np.float32)])[0])
    executable.close()
    assert (first == 3).all()
    assert (second == 5).all()


@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_written_in_place_when_bound(backend: OpenVinoBackend, cpu: Device, size: int) -> None:
    executable = backend.compile(cpu, relu(size), FP32)
    target = np.zeros(size, np.float32)
    (returned,) = executable.run([np.full(size, 3, np.float32)], [target])
    assert returned is target
    assert (target == 3).all()
    other = as_numpy(executable.run([np.full(size, 4, np.float32)])[0])
    assert (target == 3).all()
    assert (other == 4).all()


@pytest.mark.parametrize("size", SIZES)
def test_inputs_may_be_read_only_when_shared(backend: OpenVinoBackend, cpu: Device, size: int) -> None:
    executable = backend.compile(cpu, relu(size), FP32)
    x = np.full(size, -2, np.float32)
    x.flags.writeable = False
    assert (as_numpy(executable.run([x])[0]) == 0).all()
    assert (x == -2).all()


def test_inputs_may_be_strided_when_large(backend: OpenVinoBackend, cpu: Device) -> None:
    executable = backend.compile(cpu, relu(300, 200), FP32)
    x = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32).T
    np.testing.assert_array_equal(as_numpy(executable.run([x])[0]), np.maximum(x, 0))


@pytest.mark.parametrize("size", SIZES)
def test_an_output_feeds_the_next_run_when_bound_to_an_input(
    backend: OpenVinoBackend, cpu: Device, size: int
) -> None:
    nodes = [helper.make_node("Add", ["state", "step"], ["next"], name="advance")]
    graph = graph_of(nodes, [tensor("state", size), tensor("step", size)], [tensor("next", size)])
    executable = backend.compile(cpu, graph, FP32)
    step = np.ones(size, np.float32)
    state, spare = np.zeros(size, np.float32), np.empty(size, np.float32)
    for _ in range(5):
        executable.run([state, step], [spare])
        state, spare = spare, state
    assert (state == 5).all()


def test_two_executables_keep_their_answers_when_run_in_turn(backend: OpenVinoBackend, cpu: Device) -> None:
    graph, weight = product(64)
    first, second = backend.compile(cpu, graph, FP32), backend.compile(cpu, relu(2, 3), FP32)
    x = np.ones((8, 64), np.float32)
    for _ in range(3):
        assert (as_numpy(second.run([np.ones((2, 3), np.float32)])[0]) == 1).all()
        np.testing.assert_allclose(as_numpy(first.run([x])[0]), x @ weight, rtol=1e-4, atol=1e-4)
    first.close()
    assert (as_numpy(second.run([np.ones((2, 3), np.float32)])[0]) == 1).all()


# --- signature -----------------------------------------------------------------------------------


def test_tensors_keep_the_graphs_order_when_openvino_has_another(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="rectify"),
        helper.make_node("Identity", ["x"], ["same"], name="copy"),
        helper.make_node("Identity", ["y"], ["again"], name="copy_again"),
        helper.make_node("Identity", ["k"], ["constant"], name="copy_weight"),
    ]
    graph = graph_of(
        nodes,
        [tensor("unused", 3), tensor("x", 2)],
        [tensor("again", 2), tensor("x", 2), tensor("constant", 2), tensor("same", 2), tensor("y", 2)],
        [numpy_helper.from_array(np.array([7, 8], np.float32), "k")],
    )
    executable = backend.compile(cpu, graph, FP32)
    assert executable.signature == graph.signature
    answers = executable.run([np.zeros(3, np.float32), np.array([-1, 2], np.float32)])
    assert [as_numpy(a).tolist() for a in answers] == [[0, 2], [-1, 2], [7, 8], [-1, 2], [0, 2]]


@pytest.mark.parametrize(
    "dtype",
    [
        *[
            "float16",
            "float32",
            "float64",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "bool",
        ],
        "bfloat16",
    ],
)
def test_every_type_passes_unchanged_when_only_moved(
    backend: OpenVinoBackend, cpu: Device, dtype: str
) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    code = helper.np_dtype_to_tensor_dtype(kind)
    node = helper.make_node("Concat", ["x", "x"], ["y"], name="join", axis=0)
    graph = graph_of([node], [tensor("x", 3, dtype=code)], [tensor("y", 6, dtype=code)])
    x = np.array([1, 0, 1]).astype(kind)
    (answer,) = backend.compile(cpu, graph, FP32).run([HostTensor(x)])
    assert as_numpy(answer).dtype == kind
    assert as_numpy(answer).tolist() == [1, 0, 1, 1, 0, 1]


def test_bfloat16_is_shared_and_bound_when_large(backend: OpenVinoBackend, cpu: Device) -> None:
    size = SIZES[1]
    executable = backend.compile(cpu, relu(size, dtype=TensorProto.BFLOAT16), FP32)
    x = np.full(size, -1.5, ml_dtypes.bfloat16)
    x[0] = 2.5
    target = HostTensor(np.empty(size, ml_dtypes.bfloat16))
    (returned,) = executable.run([HostTensor(x)], [target])
    assert returned is target
    assert target.array[0] == ml_dtypes.bfloat16(2.5)
    assert not target.array[1:].astype(np.float32).any()
    assert as_numpy(executable.run([x])[0])[0] == ml_dtypes.bfloat16(2.5)


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_scalars_and_empty_tensors_pass_when_shapes_are_odd(
    backend: OpenVinoBackend, cpu: Device, shape: tuple[int, ...]
) -> None:
    (answer,) = backend.compile(cpu, relu(*shape), FP32).run([np.ones(shape, np.float32)])
    assert as_numpy(answer).shape == shape


def test_shape_is_the_runs_when_it_depends_on_data(backend: OpenVinoBackend, cpu: Device) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"], name="find")
    graph = graph_of([node], [tensor("x", 4)], [tensor("y", 1, "n", dtype=TensorProto.INT64)])
    executable = backend.compile(cpu, graph, FP32)
    first = as_numpy(executable.run([np.array([1, 0, 0, 1], np.float32)])[0])
    second = as_numpy(executable.run([np.array([0, 1, 0, 0], np.float32)])[0])
    assert (first.tolist(), second.tolist()) == ([[0, 3]], [[1]])
    with pytest.raises(
        InputError, match=r"output 'y' has shape \[1, 1\] after this run; the bound tensor has"
    ):
        executable.run([np.array([0, 1, 0, 0], np.float32)], [np.empty((1, 3), np.int64)])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], r"0 inputs were given; expected 1: x: float32\[2, 3\]"),
        ([np.zeros((2, 3), np.float32)] * 2, r"2 inputs were given; expected 1: x"),
        ([np.zeros((2, 3))], r"input 'x' has type float64; expected float32: convert it first"),
        ([np.zeros((3, 2), np.float32)], r"input 'x' has shape \[3, 2\]; expected \[2, 3\]"),
        (["text"], r"str is not a tensor; expected a numpy array"),
    ],
)
def test_run_names_the_input_when_it_does_not_fit(
    small: Executable, inputs: list[object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        small.run(inputs)  # type: ignore[arg-type]
    assert (as_numpy(small.run([np.ones((2, 3), np.float32)])[0]) == 1).all()


def test_run_names_the_output_when_the_bound_one_does_not_fit(small: Executable) -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match=r"output 'y' has shape \[6\]; expected \[2, 3\]"):
        small.run([x], [np.empty(6, np.float32)])
    with pytest.raises(InputError, match=r"output 'y' has type int32; expected float32"):
        small.run([x], [np.empty((2, 3), np.int32)])
    with pytest.raises(InputError, match=r"2 outputs were given; expected 1: y: float32\[2, 3\]"):
        small.run([x], [np.empty((2, 3), np.float32)] * 2)
    with pytest.raises(InputError, match=r"output 'y' is not contiguous and writeable"):
        small.run([x], [np.empty((3, 2), np.float32).T])


def test_run_refuses_when_closed(small: Executable) -> None:
    small.close()
    small.close()
    with pytest.raises(BackendError, match="this executable is closed; compile the graph again"):
        small.run([np.ones((2, 3), np.float32)])
    for method in ("blob", "submit", "kernel_runs"):
        arguments = {"blob": [], "submit": [[]], "kernel_runs": [[], 1]}[method]
        with pytest.raises(BackendError, match="is closed"):
            getattr(small, method)(*arguments)


# --- asynchronous --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_submit_keeps_answers_apart_when_several_are_under_way(
    backend: OpenVinoBackend, cpu: Device, size: int
) -> None:
    executable = backend.compile(cpu, relu(size), FP32)
    able = executable.ability(AsyncRun)
    assert able is not None
    inputs = [np.full(size, value, np.float32) for value in range(4)]
    pending = [able.submit([x]) for x in inputs]
    for value, run in reversed(list(enumerate(pending))):
        assert (as_numpy(run.wait()[0]) == value).all()
        assert run.wait() is run.wait()
    with pytest.raises(InputError, match="input 'x' has shape"):
        able.submit([np.zeros(3, np.float32)])


def test_submit_finishes_when_closed_meanwhile(backend: OpenVinoBackend, cpu: Device) -> None:
    executable = backend.compile(cpu, relu(SIZES[1]), FP32)
    pending = executable.submit([np.full(SIZES[1], 2, np.float32)])  # type: ignore[attr-defined]
    executable.close()
    assert (as_numpy(pending.wait()[0]) == 2).all()
