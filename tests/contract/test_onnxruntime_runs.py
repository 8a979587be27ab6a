"""Running on the onnxruntime plugin: tensors in and out, refusals, fallbacks, blobs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hal.backend import AsyncRun, BlobLoader, CompiledBlob, Configuration, Device, Executable, Placements
from hal.errors import BackendError, InputError, UnsupportedGraph
from hal.graph.model import Graph
from hal.tensor import HostTensor, as_numpy
from hal.testing import small_graph
from hal_onnxruntime.backend import OnnxRuntimeBackend

FP32 = Configuration("fp32")


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend()


@pytest.fixture(scope="module")
def cpu(backend: OnnxRuntimeBackend) -> Device:
    return next(device for device in backend.discover() if not device.variant)


@pytest.fixture
def adder(backend: OnnxRuntimeBackend, cpu: Device) -> Iterator[Executable]:
    """y = x + w, of float32[2, 3] and float32[3]."""
    executable = backend.compile(
        cpu, model([("Add", "x w", "y")], {"x": [2, 3], "w": [3]}, {"y": [2, 3]}), FP32
    )
    yield executable
    executable.close()


def model(
    nodes: list[tuple[str, str, str]],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[Any]],
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    out_kinds: dict[str, int] | None = None,
    weights: dict[str, list[float]] | None = None,
) -> Graph:
    made = []
    domains = {""}
    for index, (op, read, written) in enumerate(nodes):
        domain, _, name = op.rpartition("::")
        domains.add(domain)
        made.append(helper.make_node(name, read.split(), written.split(), name=f"n{index}", domain=domain))
    graph = helper.make_graph(
        made,
        "made",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [
            helper.make_tensor_value_info(name, (out_kinds or {}).get(name, kind), shape)
            for name, shape in outputs.items()
        ],
        [helper.make_tensor(name, TensorProto.FLOAT, [len(v)], v) for name, v in (weights or {}).items()],
    )
    imports = [helper.make_opsetid(domain, 1 if domain else opset) for domain in sorted(domains)]
    return Graph.load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_answer_is_right_when_arrays_are_views(adder: Executable) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T[:, ::-1]
    (y,) = adder.run([x, ones(3)])
    np.testing.assert_array_equal(as_numpy(y), x + 1)


def test_outputs_survive_when_run_again_and_closed(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    executable = backend.compile(cpu, model([("Relu", "x", "y")], {"x": [4]}, {"y": [4]}), FP32)
    (first,) = executable.run([ones(4)])
    executable.run([ones(4) * 9])
    executable.close()
    np.testing.assert_array_equal(as_numpy(first), ones(4))


def test_output_is_a_copy_when_it_is_a_weight_or_an_input(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    graph = model(
        [("Relu", "x", "y")], {"x": [4]}, {"y": [4], "w": [4], "x": [4]}, weights={"w": [1.0, 2.0, 3.0, 4.0]}
    )
    executable, x = backend.compile(cpu, graph, FP32), ones(4)
    given = [np.empty(4, np.float32) for _ in range(3)]
    for outputs in (executable.run([x]), executable.run([x], given)):
        for output in outputs[1:]:
            as_numpy(output)[:] = 77
    np.testing.assert_array_equal(x, ones(4))
    np.testing.assert_array_equal(as_numpy(executable.run([x])[1]), [1, 2, 3, 4])
    executable.close()


def test_bound_outputs_are_filled_and_returned_when_given(adder: Executable) -> None:
    y = np.zeros((2, 3), np.float32)
    (back,) = adder.run([ones(2, 3), ones(3)], [y])
    assert back is y
    np.testing.assert_array_equal(y, 2 * ones(2, 3))


def test_bound_output_is_right_when_it_is_an_input_too(adder: Executable) -> None:
    x = ones(2, 3)
    for _ in range(3):
        adder.run([x, ones(3)], [x])
    np.testing.assert_array_equal(x, 4 * ones(2, 3))


def test_ort_values_pass_when_made_by_the_runtime(adder: Executable) -> None:
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    x, y = make(ones(2, 3)), make(ones(2, 3))
    adder.run([x, ones(3)], [y])
    np.testing.assert_array_equal(y.numpy(), 2 * ones(2, 3))
    with pytest.raises(InputError, match=r"input 'x' has shape \[3\]; expected \[2, 3\]"):
        adder.run([make(ones(3)), ones(3)])


def test_bfloat16_passes_when_the_graph_has_it(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    graph = model(
        [("Identity", "x", "y"), ("Cast", "x", "z")],
        {"x": [4]},
        {"y": [4], "z": [4]},
        kind=TensorProto.BFLOAT16,
        out_kinds={"z": TensorProto.FLOAT},
    )
    next(node for node in graph.nodes.values() if node.op_type == "Cast").attributes.add(
        onnx_ir.AttrInt64("to", TensorProto.FLOAT)
    )
    executable = backend.compile(cpu, graph, FP32)
    values = np.arange(4).astype(ml_dtypes.bfloat16)
    y, z = executable.run([HostTensor(values)])
    assert as_numpy(y).dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(as_numpy(y), values)
    np.testing.assert_array_equal(as_numpy(z), [0, 1, 2, 3])
    assert y.__dlpack__() is not None
    given = [HostTensor(np.zeros(4, ml_dtypes.bfloat16)), np.zeros(4, np.float32)]
    assert executable.run([HostTensor(values)], given)[0] is given[0]
    np.testing.assert_array_equal(as_numpy(given[0]), values)
    executable.close()


def test_strings_pass_when_the_graph_has_them(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    graph = model([("Identity", "x", "y")], {"x": [2]}, {"y": [2]}, kind=TensorProto.STRING)
    executable = backend.compile(cpu, graph, FP32)
    for words in (np.array(["a", "bé"], object), np.array(["a", "bé"])):
        assert list(as_numpy(executable.run([words])[0])) == ["a", "bé"]
    given = np.empty(2, object)
    assert executable.run([np.array(["a", "b"], object)], [given])[0] is given
    assert list(given) == ["a", "b"]
    executable.close()


def test_given_outputs_are_judged_by_the_run_when_sizes_depend_on_values(
    backend: OnnxRuntimeBackend, cpu: Device
) -> None:
    graph = model(
        [("Not", "x", "y"), ("NonZero", "y", "z")],
        {"x": [4]},
        {"y": [4], "z": [1, "n"]},
        kind=TensorProto.BOOL,
        out_kinds={"z": TensorProto.INT64},
    )
    executable, x = backend.compile(cpu, graph, FP32), np.array([True, False, True, False])
    y, z = executable.run([x], [np.empty(4, bool), np.empty((1, 2), np.int64)])
    assert (list(as_numpy(y)), list(as_numpy(z)[0])) == ([False, True, False, True], [1, 3])
    with pytest.raises(InputError, match=r"output 'z' came out as \[1, 2\].*is \[1, 3\]"):
        executable.run([x], [np.empty(4, bool), np.empty((1, 3), np.int64)])
    executable.close()


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (
            ones(2, 3).astype(">f4"),
            "input 'x' is big-endian or otherwise byte-swapped; expected this machine's",
        ),
        (ones(2, 3).astype(np.float64), "input 'x' has type float64; expected float32"),
        (ones(2, 4), "input 'x' has shape [2, 4]; expected [2, 3]"),
        (ones(6), "input 'x' has shape [6]; expected [2, 3]"),
        ([1.0], "input 'x': list is not a tensor"),
    ],
)
def test_input_is_refused_by_name_when_it_does_not_fit(adder: Executable, x: Any, text: str) -> None:
    for outputs in (None, [ones(2, 3)]):
        with pytest.raises(InputError) as caught:
            adder.run([x, ones(3)], outputs)
        assert text in str(caught.value)


def test_inputs_are_refused_when_one_is_missing(adder: Executable) -> None:
    with pytest.raises(
        InputError, match=r"1 inputs were given; expected 2: x: float32\[2, 3\], w: float32\[3\]"
    ):
        adder.run([ones(2, 3)])


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ([], "0 outputs were given to write to; expected 1: y: float32[2, 3]"),
        ([ones(2, 4)], "output 'y' has shape [2, 4]; expected [2, 3]"),
        ([ones(2, 3).astype(np.int32)], "output 'y' has type int32; expected float32"),
        ([ones(3, 2).T], "output 'y' is not contiguous and writable; expected a plain array"),
    ],
)
def test_given_outputs_are_refused_when_they_do_not_fit(adder: Executable, outputs: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        adder.run([ones(2, 3), ones(3)], outputs)
    assert text in str(caught.value)


def test_run_raises_when_closed(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    executable = backend.compile(cpu, small_graph("add"), FP32)
    executable.close()
    executable.close()
    asked = executable.ability(AsyncRun)
    assert asked is not None
    for use in (
        lambda: executable.run([]),
        lambda: asked.submit([]),
        executable.kernel_runs,
        executable.blob,
    ):  # type: ignore[attr-defined]
        with pytest.raises(BackendError, match="this executable is closed; compile the graph again"):
            use(*([[], 1] if use == executable.kernel_runs else []))  # type: ignore[attr-defined]


def test_runtime_failure_is_told_in_one_line_when_running(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    graph = model([("Gather", "x i", "y")], {"x": [2], "i": [1]}, {"y": [1]}, kind=TensorProto.INT64)
    executable = backend.compile(cpu, graph, FP32)
    with pytest.raises(BackendError, match=r"^onnxruntime failed while running: .*indices element out of"):
        executable.run([np.zeros(2, np.int64), np.array([7])])
    executable.close()


def test_refusal_names_nodes_and_reasons_when_there_is_no_kernel(
    backend: OnnxRuntimeBackend, cpu: Device
) -> None:
    graph = model(
        [("Identity", "x", "t"), ("Conv", "t w", "y")],
        {"x": [1, 3, 8, 8], "w": [1, 3, 1, 1]},
        {"y": [1, 1, 8, 8]},
        kind=TensorProto.BFLOAT16,
        opset=22,
    )
    answers = backend.capability(cpu, graph, "fp32")
    assert answers["n0"].yes
    assert answers["n1"].reason == "Could not find an implementation for Conv(22) node with name 'n1'"
    with pytest.raises(UnsupportedGraph) as caught:
        backend.compile(cpu, graph, FP32)
    assert str(caught.value) == (
        "onnxruntime refuses 1 of 2 nodes of model 'made': "
        "n1 (Conv): Could not find an implementation for Conv(22) node with name 'n1'"
    )


def test_refusal_follows_the_unknown_operator_when_types_are_lost(
    backend: OnnxRuntimeBackend, cpu: Device
) -> None:
    graph = model(
        [("Relu", "x", "t"), ("my.domain::Foo", "t", "u"), ("Abs", "u", "y")], {"x": [2]}, {"y": [2]}
    )
    answers = backend.capability(cpu, graph, "fp32")
    assert [answers[name].yes for name in ("n0", "n1", "n2")] == [True, False, False]
    assert "my.domain:Foo(-1) is not a registered function/op" in answers["n1"].reason
    assert "the type of its input 'u' is not known" in answers["n2"].reason
    with pytest.raises(UnsupportedGraph, match=r"refuses 2 of 3 nodes of model 'made': n1 \(Foo\)"):
        backend.compile(cpu, graph, FP32)


def test_unbound_graph_is_refused_when_compiling(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    graph = model([("Relu", "x", "y")], {"x": ["batch", 2]}, {"y": ["batch", 2]})  # type: ignore[list-item]
    with pytest.raises(UnsupportedGraph, match=r"dimensions without a number: x\[batch, 2\]; bind them"):
        backend.compile(cpu, graph, FP32)


def test_blob_is_refused_when_made_for_other_options(backend: OnnxRuntimeBackend, cpu: Device) -> None:
    loader = backend.ability(BlobLoader)
    executable = backend.compile(cpu, small_graph("chain"), FP32)
    packer = executable.ability(CompiledBlob)
    assert loader is not None
    assert packer is not None
    blob = packer.blob()
    with pytest.raises(BackendError, match="the blob was made for configuration"):
        loader.load_blob(cpu, blob, Configuration.of("fp32", {"threads": 1}))
    older = blob.replace(onnxruntime.__version__.encode(), b"0.0.0", 1)
    with pytest.raises(BackendError, match=r"the blob was made for onnxruntime 0\.0\.0"):
        loader.load_blob(cpu, older, FP32)
    with pytest.raises(BackendError, match="its digest does not match its content"):
        loader.load_blob(cpu, blob[:-3], FP32)
    with pytest.raises(BackendError, match="it does not begin as one"):
        loader.load_blob(cpu, b"nothing", FP32)
    executable.close()


def test_nodes_left_to_the_cpu_are_reported_when_a_provider_claims_none() -> None:
    if importlib.util.find_spec("nxrt_ep_cpu") is None:
        pytest.skip("nxrt-ep-cpu is not installed: a plugin provider that claims few nodes")
    backend, graph = OnnxRuntimeBackend(), model([("Det", "x", "y")], {"x": [3, 3]}, {"y": []})
    device = next(device for device in backend.discover() if device.variant == "cpu_ep")
    assert (device.id, device.silicon, device.memory_pool) == ("cpu:0", "cpu:0", "host")
    executable = backend.compile(device, graph, FP32)
    asked = executable.ability(Placements)
    assert asked is not None
    found = asked.fallbacks()
    answers = backend.capability(device, graph, "fp32")
    assert {fallback.node for fallback in found} == {
        name for name, answer in answers.items() if answer.reason
    }
    for fallback in found:
        assert (fallback.asked, fallback.got) == ("cpu_ep", "CPUExecutionProvider")
        assert answers[fallback.node].reason == "cpu_ep leaves it to CPUExecutionProvider"
    assert found
    executable.close()
