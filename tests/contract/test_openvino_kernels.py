"""Kernel times of the openvino backend and how they are mapped to the graph's nodes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hal.backend import Configuration, Device, KernelRuns, KernelTimes
from hal.errors import InputError
from hal.graph.model import Graph
from hal_openvino.atlas import Atlas
from hal_openvino.attribution import Step, attribute
from hal_openvino.backend import OpenVinoBackend
from hal_openvino.counters import durations_from_averages, durations_from_runs

FP32 = Configuration.of("fp32", {"threads": 1})
N_RUNS = 5


@pytest.fixture(scope="module")
def backend() -> OpenVinoBackend:
    return OpenVinoBackend()


@pytest.fixture(scope="module")
def cpu(backend: OpenVinoBackend) -> Device:
    return next(device for device in backend.discover() if device.kind == "cpu")


def inputs_for(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = []
    for spec in graph.signature.inputs:
        shape = tuple(int(size) for size in spec.shape)
        if np.dtype(spec.dtype).kind == "f":
            found.append(rng.standard_normal(shape).astype(spec.dtype))
        else:
            found.append(np.full(shape, 16000 if spec.name == "sr" else 1, spec.dtype))
    return found


def kernel_runs(
    backend: OpenVinoBackend, cpu: Device, graph: Graph, configuration: Configuration
) -> KernelRuns:
    able = backend.compile(cpu, graph, configuration).ability(KernelTimes)
    assert able is not None
    return able.kernel_runs(inputs_for(graph), N_RUNS)


def network() -> Graph:
    """A convolution with an activation in five nodes, a chain on constants, a reshape and a product."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((8 * 16 * 16, 10)).astype(np.float32),
        "three": np.array(3, np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "shape": np.array([1, -1], np.int64),
    }
    nodes = [
        helper.make_node("Neg", ["w"], ["nw"], name="negated_weight"),
        helper.make_node("Conv", ["x", "nw"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "three"], ["a"], name="shift"),
        helper.make_node("Clip", ["a", "zero", "six"], ["l"], name="clip"),
        helper.make_node("Mul", ["c", "l"], ["m"], name="gate"),
        helper.make_node("Div", ["m", "six"], ["d"], name="scale"),
        helper.make_node("Identity", ["d"], ["i"], name="same"),
        helper.make_node("Reshape", ["i", "shape"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="product"),
    ]
    proto = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def test_kernels_cover_fused_nodes_when_an_activation_is_decomposed(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    runs = kernel_runs(backend, cpu, network(), FP32)
    (conv,) = [kernel for kernel in runs.kernels if kernel.type.startswith("Convolution/")]
    assert {"conv", "shift", "clip", "gate", "scale"} <= set(conv.nodes)
    (dense,) = [kernel for kernel in runs.kernels if "product" in kernel.nodes]
    assert "conv" not in dense.nodes
    assert "negated_weight" in runs.folded
    covered = {node for kernel in runs.kernels for node in kernel.nodes}
    assert covered | set(runs.folded) == set(network().nodes)
    assert covered.isdisjoint(runs.folded)


def test_kernels_have_one_duration_per_run_when_called_twice(backend: OpenVinoBackend, cpu: Device) -> None:
    graph = network()
    executable = backend.compile(cpu, graph, FP32)
    for n_runs in (3, 4):
        runs = executable.kernel_runs(inputs_for(graph), n_runs)  # type: ignore[attr-defined]
        assert len(runs.run_ns) == n_runs
        assert {len(kernel.durations_ns) for kernel in runs.kernels} == {n_runs}
        assert all(duration >= 0 for kernel in runs.kernels for duration in kernel.durations_ns)
        total_ns = sum(sum(kernel.durations_ns) for kernel in runs.kernels)
        # A counter's total is right to 1 us per run that it has seen, the warm-up runs among them.
        slack_ns = len(runs.kernels) * 2 * (n_runs + 6) * 1000
        assert 0 < total_ns <= sum(runs.run_ns) + slack_ns
    with pytest.raises(InputError, match="0 inputs were given; expected 1"):
        executable.kernel_runs([], 1)  # type: ignore[attr-defined]


def test_kernels_are_attributed_when_loaded_from_a_blob(backend: OpenVinoBackend, cpu: Device) -> None:
    graph = network()
    direct = backend.compile(cpu, graph, FP32)
    loaded = backend.load_blob(cpu, direct.blob(), FP32)  # type: ignore[attr-defined]
    nodes = [
        sorted({node for kernel in e.kernel_runs(inputs_for(graph), 1).kernels for node in kernel.nodes})  # type: ignore[attr-defined]
        for e in (direct, loaded)
    ]
    assert nodes[0] == nodes[1] != []


def test_kernels_compute_in_bf16_when_asked(backend: OpenVinoBackend, cpu: Device) -> None:
    if "bf16" not in cpu.precisions:
        pytest.skip("this CPU does not compute in bf16")
    for precision in ("fp32", "bf16"):
        runs = kernel_runs(backend, cpu, network(), Configuration.of(precision, {"threads": 1}))
        (conv,) = [kernel for kernel in runs.kernels if kernel.type.startswith("Convolution/")]
        assert ("bf16" in conv.type) == (precision == "bf16")


def test_streams_do_not_disturb_counters_when_tuned_for_throughput(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    configuration = Configuration.of("fp32", {"hint": "throughput", "streams": 2, "threads": 2})
    runs = kernel_runs(backend, cpu, network(), configuration)
    assert any(kernel.nodes for kernel in runs.kernels)


SHIPPED = [
    ("rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", {"x": (1, 3, 48, 192)}),
    ("rapidocr", "models/PP-OCRv6_rec_small.onnx", {"x": (1, 3, 48, 96)}),
    ("magika", "models/standard_v3_3/model.onnx", {"bytes": (1, 2048)}),
    ("silero_vad", "data/silero_vad_16k_op15.onnx", {"input": (1, 576), "state": (2, 1, 128)}),
    ("silero_vad", "data/silero_vad_op18_ifless.onnx", {"input": (1, 576), "state": (2, 1, 128)}),
]


@pytest.mark.parametrize(
    ("package", "file", "shapes"), SHIPPED, ids=[Path(file).stem for _, file, _ in SHIPPED]
)
def test_every_node_is_found_when_the_model_is_real(
    backend: OpenVinoBackend, cpu: Device, package: str, file: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    graph = Graph.load(Path(found.origin).parent / file).bind(shapes)
    answers = backend.capability(cpu, graph, "fp32")
    assert [reason for reason in answers.values() if not reason.yes] == []
    runs = kernel_runs(backend, cpu, graph, FP32)
    total = sum(np.median(kernel.durations_ns) for kernel in runs.kernels)
    attributed = sum(np.median(kernel.durations_ns) for kernel in runs.kernels if kernel.nodes)
    assert attributed >= 0.98 * total
    known = {node for kernel in runs.kernels for node in kernel.nodes} | set(runs.folded)
    assert set(graph.nodes) - known == set()


# --- rules of attribution ------------------------------------------------------------------------


class Port:
    """An input of the runtime model below, as openvino's Python objects present one."""

    def __init__(self, source: "Operation") -> None:
        self._source = source

    def get_source_output(self) -> "Port":
        return self

    def get_node(self) -> "Operation":
        return self._source


class Value:
    def __init__(self, value: str) -> None:
        self.value = value


class Operation:
    def __init__(self, name: str, kind: str, original: str, *sources: "Operation") -> None:
        self._name, self._sources = name, sources
        self._facts = {"layerType": Value(kind), "originalLayersNames": Value(original)}

    def get_friendly_name(self) -> str:
        return self._name

    def get_rt_info(self) -> dict[str, Value]:
        return self._facts

    def inputs(self) -> list[Port]:
        return [Port(source) for source in self._sources]


class RuntimeModel:
    def __init__(self, *operations: Operation) -> None:
        self._operations = operations

    def get_ordered_ops(self) -> tuple[Operation, ...]:
        return self._operations


def chain(*operators: str, constant: frozenset[str] = frozenset()) -> Atlas:
    """Nodes n0 -> n1 -> ..., each with one token of the same number."""
    names = [f"n{i}" for i in range(len(operators))]
    return Atlas(
        names=tuple(names),
        owners=tuple((name,) for name in names),
        operators=dict(zip(names, operators, strict=True)),
        consumers={name: tuple(names[i + 1 : i + 2]) for i, name in enumerate(names)},
        constant=constant,
    )


def nodes_of(steps: list[Step]) -> dict[str, list[str]]:
    return {step.name: list(step.nodes) for step in steps}


def test_attribute_gives_nodes_between_when_a_step_has_no_token() -> None:
    atlas = chain("Conv", "LSTM", "Slice", "Relu")
    source = Operation("in", "Input", "")
    conv = Operation("hal0", "Convolution", "hal0", source)
    replaced = Operation("LSTMSequence_9", "RNNSeq", "LSTMSequence_9", conv)
    relu = Operation("hal3", "Eltwise", "hal3", replaced)
    steps, folded = attribute(atlas, RuntimeModel(source, conv, replaced, relu))
    assert nodes_of(steps) == {"hal0": ["n0"], "LSTMSequence_9": ["n1", "n2"], "hal3": ["n3"]}
    assert folded == ()


def test_attribute_gives_the_reader_when_a_step_only_converts_layout() -> None:
    atlas = chain("Conv", "Softmax")
    source = Operation("in", "Input", "")
    conv = Operation("hal0", "Convolution", "hal0", source)
    reorder = Operation("hal0_acdb_abcd_hal1", "Reorder", "", conv)
    softmax = Operation("hal1", "Softmax", "hal1", reorder)
    steps, _ = attribute(atlas, RuntimeModel(source, conv, reorder, softmax))
    assert nodes_of(steps)["hal0_acdb_abcd_hal1"] == ["n1"]


def test_attribute_gives_views_to_who_makes_them_and_folds_constants_when_no_step_has_them() -> None:
    atlas = chain("Neg", "Conv", "Reshape", "Relu", constant=frozenset({"n0"}))
    source = Operation("in", "Input", "")
    conv = Operation("hal1", "Convolution", "hal1", source)
    relu = Operation("hal3", "Eltwise", "hal3", conv)
    steps, folded = attribute(atlas, RuntimeModel(source, conv, relu))
    assert nodes_of(steps) == {"hal1": ["n1", "n2"], "hal3": ["n3"]}
    assert folded == ("n0",)


def test_attribute_gives_views_of_the_input_to_who_reads_them_when_no_step_has_them() -> None:
    atlas = chain("Squeeze", "Reshape", "Conv")
    source = Operation("in", "Input", "")
    conv = Operation("hal2", "Convolution", "hal2", source)
    steps, folded = attribute(atlas, RuntimeModel(source, conv))
    assert nodes_of(steps) == {"hal2": ["n0", "n1", "n2"]}
    assert folded == ()


def test_attribute_folds_views_when_nothing_is_run() -> None:
    steps, folded = attribute(chain("Squeeze", "Reshape"), RuntimeModel(Operation("in", "Input", "")))
    assert steps == []
    assert folded == ("n0", "n1")


def test_attribute_ignores_steps_on_constants_when_they_are_not_run() -> None:
    atlas = chain("Conv")
    source, bias = Operation("in", "Input", ""), Operation("Constant_7", "Const", "Constant_7")
    reshape = Operation("Constant_7_flatten", "Reshape", "Constant_7_flatten", bias)
    conv = Operation("hal0", "Convolution", "hal0", source, reshape)
    steps, _ = attribute(atlas, RuntimeModel(source, bias, reshape, conv))
    assert nodes_of(steps) == {"hal0": ["n0"]}


def test_readable_replaces_tokens_when_names_are_composed() -> None:
    atlas = chain("Conv", "Relu")
    assert atlas.readable("hal0_abcd_acdb_hal1") == "n0_abcd_acdb_n1"
    assert atlas.readable("hal99") == "hal99"
    assert atlas.owners_of("hal1/transpose_b") == ("n1",)
    assert atlas.owners_of("Multiply_3") == ()


# --- counters ------------------------------------------------------------------------------------


def averages(durations_us: list[int]) -> list[int]:
    totals = np.cumsum(durations_us)
    return [int(total) // k for k, total in enumerate(totals, 1)]


def test_durations_are_exact_when_every_run_takes_the_same() -> None:
    assert durations_from_averages(averages([5] * 20)) == [5000] * 20
    assert durations_from_averages([0, 0, 0]) == [0, 0, 0]
    assert durations_from_averages([]) == []
    assert durations_from_runs([3, 4]) == [3000, 4000]


def test_durations_forget_the_first_run_when_it_was_slow() -> None:
    found = durations_from_averages(averages([1000] + [5] * 20))
    assert found[0] == 1_000_000
    assert abs(np.median(found[1:]) - 5000) <= 1000


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_durations_reproduce_every_reading_when_taken_back(durations_us: list[int]) -> None:
    readings = averages(durations_us)
    totals_us = np.cumsum([0, *durations_from_averages(readings)]) / 1000
    assert (np.diff(totals_us) >= 0).all()
    for k, reading in enumerate(readings, 1):
        assert k * reading - 0.1 <= totals_us[k] <= k * reading + k - 1 + 0.1
    assert abs(totals_us[-1] - sum(durations_us)) <= len(durations_us)
