"""The openvino backend: devices, options, support, blobs, advice, and the texts of its errors."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from hal.backend import BlobLoader, CompiledBlob, Configuration, Device, Diagnosis, Executable
from hal.errors import BackendError, TargetError, UnsupportedGraph
from hal.graph.model import Graph
from hal.host import n_usable_cpus
from hal_openvino import devices, doctor, settings
from hal_openvino.backend import OpenVinoBackend
from hal_openvino.failures import ReadFailure, summary

FP32 = Configuration.of("fp32")


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    domains: Sequence[str] = (),
) -> Graph:
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    proto = helper.make_graph(nodes, "small", inputs, outputs, weights)
    return Graph.load(helper.make_model(proto, opset_imports=opsets, ir_version=9))


def tensor(name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def dense() -> Graph:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Relu", ["p"], ["y"], name="rectify"),
    ]
    return graph_of(nodes, [tensor("x", 4, 16)], [tensor("y", 4, 8)], [numpy_helper.from_array(weight, "w")])


@pytest.fixture(scope="module")
def backend() -> OpenVinoBackend:
    return OpenVinoBackend()


@pytest.fixture(scope="module")
def cpu(backend: OpenVinoBackend) -> Device:
    return next(device for device in backend.discover() if device.kind == "cpu")


def test_plugin_imports_no_runtime_when_backend_is_made() -> None:
    code = (
        "import sys; from hal_openvino.plugin import hal_backend; backend = hal_backend();"
        "assert backend.name == 'openvino'; assert 'openvino' not in sys.modules, 'openvino was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_discover_describes_the_host_when_asked(backend: OpenVinoBackend, cpu: Device) -> None:
    import openvino

    told = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (cpu.id, cpu.silicon, cpu.memory_pool, cpu.unavailable) == ("cpu:0", "cpu:0", "host", "")
    assert cpu.precisions[0] == "fp32"
    assert ("bf16" in cpu.precisions) == ("BF16" in told)
    assert ("fp16" in cpu.precisions) == ("FP16" in told)
    assert cpu.properties["openvino_version"] == openvino.get_version()
    assert cpu.memory_bytes is not None
    assert cpu.memory_bytes > 1 << 28


def test_discover_gives_the_reason_when_a_kind_of_device_is_missing(backend: OpenVinoBackend) -> None:
    import openvino

    listed = {name.partition(".")[0] for name in openvino.Core().available_devices}
    found = {device.kind: device for device in backend.discover()}
    for kind in {"GPU", "NPU"} - listed:
        assert found[kind.lower()].unavailable.startswith(f"OpenVINO's {kind} plugin ")
        assert "/" not in found[kind.lower()].unavailable


class ListedCore:
    """An openvino.Core of a machine with other devices, as its Python interface answers."""

    def __init__(self, devices: dict[str, dict[str, object]]) -> None:
        self._devices = devices

    @property
    def available_devices(self) -> list[str]:
        return list(self._devices)

    def get_property(self, device: str, key: str) -> object:
        if key == "SUPPORTED_PROPERTIES":
            return dict.fromkeys(self._devices[device], "RO")
        if device not in self._devices:
            return []
        value = self._devices[device][key]
        if isinstance(value, Exception):
            raise value
        return value


def test_discover_tells_silicon_and_memory_when_there_are_gpus_and_an_npu() -> None:
    core = ListedCore(
        {
            "GPU.0": {
                "FULL_DEVICE_NAME": "Built in",
                "OPTIMIZATION_CAPABILITIES": ["FP32", "FP16", "INT8"],
                "DEVICE_TYPE": "Type.INTEGRATED",
                "DEVICE_UUID": "a1b2",
            },
            "GPU.1": {
                "FULL_DEVICE_NAME": "Card",
                "OPTIMIZATION_CAPABILITIES": ["FP32", "BF16", "FP16"],
                "DEVICE_TYPE": "Type.DISCRETE",
                "DEVICE_PCI_INFO": "{domain: 0 bus: 0x3 device: 0x0 function: 0}",
                "GPU_DEVICE_TOTAL_MEM_SIZE": 8 << 30,
            },
            "NPU": {
                "FULL_DEVICE_NAME": "Engine",
                "OPTIMIZATION_CAPABILITIES": ["FP16", "INT8"],
                "DEVICE_PCI_INFO": TypeError("no Python form"),
                "NPU_DRIVER_VERSION": 32,
            },
        }
    )
    built_in, card, engine = devices.discover(core)
    assert (built_in.id, built_in.silicon, built_in.memory_pool) == ("gpu:0", "uuid:a1b2", "host")
    assert (card.id, card.silicon, card.memory_pool) == ("gpu:1", "0000:03:00.0", "0000:03:00.0")
    assert card.precisions == ("fp32", "bf16", "fp16")
    assert card.memory_bytes == 8 << 30
    assert (engine.id, engine.kind, engine.precisions) == ("npu:0", "npu", ("fp16",))
    assert engine.properties["npu_driver_version"] == "32"
    assert [spec.name for spec in settings.specs(card)] == ["cache_dir", "hint", "streams"]


def test_options_default_to_the_usable_cores_when_on_cpu(backend: OpenVinoBackend, cpu: Device) -> None:
    defaults = {spec.name: spec.default for spec in backend.options(cpu)}
    assert defaults == {"cache_dir": "", "hint": "latency", "streams": 0, "threads": n_usable_cpus()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stream": 1}, "option 'stream' is unknown; available: cache_dir, hint, streams, threads"),
        ({"hint": "fast"}, "hint='fast' is unknown; available: latency, throughput"),
        ({"streams": "two"}, "streams='two' is of the wrong type; expected int"),
        ({"threads": True}, "threads=True is of the wrong type; expected int"),
        ({"threads": 0}, "threads=0 is too small; expected 1 or more"),
        ({"streams": -1}, "streams=-1 is too small; expected 0 or more"),
        ({"cache_dir": "nowhere"}, "cache_dir is not an existing folder; expected one, or nothing"),
    ],
)
def test_compile_names_the_choices_when_an_option_is_wrong(
    backend: OpenVinoBackend, cpu: Device, options: dict[str, str | int], words: str
) -> None:
    with pytest.raises(TargetError) as caught:
        backend.compile(cpu, dense(), Configuration.of("fp32", options))
    assert words in str(caught.value)
    assert "openvino cannot use this configuration on cpu:0" in str(caught.value)


def test_compile_lists_all_problems_when_several_options_are_wrong(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    with pytest.raises(TargetError) as caught:
        backend.compile(cpu, dense(), Configuration.of("fp32", {"hint": "x", "threads": 0}))
    assert str(caught.value).count("\n  - ") == 2


def test_compile_refuses_a_precision_when_the_device_does_not_list_it(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    missing = "fp16" if "fp16" not in cpu.precisions else "bf16"
    if missing in cpu.precisions:
        pytest.skip("this CPU computes in every precision")
    with pytest.raises(
        TargetError, match=f"precision '{missing}' is not computed by cpu:0 .* available: fp32"
    ):
        backend.compile(cpu, dense(), Configuration.of(missing))
    answers = backend.capability(cpu, dense(), missing)
    assert {support.yes for support in answers.values()} == {False}
    assert f"does not compute in {missing}" in answers["product"].reason


def test_compile_refuses_a_device_when_it_is_unavailable(backend: OpenVinoBackend) -> None:
    absent = Device(id="npu:0", name="x", kind="npu", silicon="a", memory_pool="a", unavailable="no driver")
    with pytest.raises(TargetError, match="npu:0 cannot be used by openvino: no driver"):
        backend.compile(absent, dense(), FP32)
    assert backend.capability(absent, dense(), "fp32")["product"].reason == "no driver"


def test_compile_refuses_a_device_when_it_is_another_backends(backend: OpenVinoBackend) -> None:
    foreign = Device(id="cuda:0", name="GPU", kind="gpu", silicon="a", memory_pool="a")
    with pytest.raises(TargetError, match=r"cuda:0 \(GPU\) is not openvino's"):
        backend.compile(foreign, dense(), FP32)


def test_compile_names_dimensions_when_they_are_unbound(backend: OpenVinoBackend, cpu: Device) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="r")
    free = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    graph = graph_of([node], [free], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])])
    with pytest.raises(UnsupportedGraph, match=r"dimensions without a number: x\[batch, 3\]"):
        backend.compile(cpu, graph, FP32)


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_compile_runs_one_stream_only_when_tuned_for_latency(
    backend: OpenVinoBackend, cpu: Device, hint: str
) -> None:
    chosen = settings.read(cpu, Configuration.of("fp32", {"hint": hint, "threads": 2}))
    asked = settings.properties(cpu, chosen, ["NUM_STREAMS", "PERFORMANCE_HINT", "INFERENCE_NUM_THREADS"])
    assert asked.get("NUM_STREAMS") == (1 if hint == "latency" else None)
    assert asked["PERFORMANCE_HINT"] == hint.upper()
    assert asked["INFERENCE_NUM_THREADS"] == 2
    with_option = backend.compile(cpu, dense(), Configuration.of("fp32", {"hint": hint, "streams": 2}))
    x = np.ones((4, 16), np.float32)
    assert np.asarray(with_option.run([x])[0]).shape == (4, 8)


# --- support -------------------------------------------------------------------------------------


def test_capability_says_yes_to_every_node_when_all_are_supported(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    answers = backend.capability(cpu, dense(), "fp32")
    assert list(answers) == ["product", "rectify"]
    assert all(support.yes for support in answers.values())


def test_capability_names_the_operator_when_the_reader_has_no_rule(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="before"),
        helper.make_node("Frobnicate", ["a"], ["b"], name="odd", domain="org.example"),
        helper.make_node("Relu", ["b"], ["y"], name="after"),
    ]
    graph = graph_of(nodes, [tensor("x", 4)], [tensor("y", 4)], domains=["org.example"])
    answers = backend.capability(cpu, graph, "fp32")
    assert list(answers) == ["before", "odd", "after"]
    assert answers["before"].yes
    assert answers["odd"].reason == (
        "org.example.Frobnicate: OpenVINO's ONNX reader has no rule for org.example.Frobnicate"
    )
    assert not answers["after"].yes
    with pytest.raises(UnsupportedGraph) as caught:
        backend.compile(cpu, graph, FP32)
    assert "node 'odd': org.example.Frobnicate: OpenVINO's ONNX reader has no rule" in str(caught.value)
    assert ".cpp" not in str(caught.value)


def test_capability_refuses_text_when_a_node_handles_it(backend: OpenVinoBackend, cpu: Device) -> None:
    text = TensorProto.STRING
    node = helper.make_node("Identity", ["x"], ["y"], name="copy")
    graph = graph_of([node], [tensor("x", 2, dtype=text)], [tensor("y", 2, dtype=text)])
    reason = backend.capability(cpu, graph, "fp32")["copy"].reason
    assert reason == "Identity: tensor 'x' is of type string, which OpenVINO does not pass safely"
    with pytest.raises(UnsupportedGraph, match="node 'copy': tensor 'x' is of type string"):
        backend.compile(cpu, graph, FP32)


def test_capability_blames_the_outer_node_when_a_subgraph_holds_the_operator(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    def branch(op: str, domain: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["x"], [f"{op}_out"], name=f"{op}_inside", domain=domain)
        return helper.make_graph([node], op, [], [tensor(f"{op}_out", 4)])

    choose = helper.make_node(
        "If",
        ["c"],
        ["y"],
        name="choose",
        then_branch=branch("Relu", ""),
        else_branch=branch("Frobnicate", "org.example"),
    )
    inputs = [tensor("x", 4), tensor("c", dtype=TensorProto.BOOL)]
    graph = graph_of([choose], inputs, [tensor("y", 4)], domains=["org.example"])
    answer = backend.capability(cpu, graph, "fp32")["choose"]
    assert answer.reason == (
        "If: inside it, org.example.Frobnicate: OpenVINO's ONNX reader has no rule for org.example.Frobnicate"
    )


def test_capability_leaves_the_graph_alone_when_asked(backend: OpenVinoBackend, cpu: Device) -> None:
    graph = dense()
    before = ir.serde.serialize_model(graph.model).SerializeToString(deterministic=True)
    backend.capability(cpu, graph, "fp32")
    assert ir.serde.serialize_model(graph.model).SerializeToString(deterministic=True) == before


# --- texts ---------------------------------------------------------------------------------------


def test_summary_keeps_the_complaint_when_openvino_adds_its_call_chain() -> None:
    text = (
        "Exception from src/inference/src/cpp/core.cpp:84:\n"
        "Check 'a == b' failed at src/frontends/onnx/frontend/src/op/conv.cpp:38:\n"
        "FrontEnd API failed with GeneralFailure:\n"
        "While validating node 'opset1::Add Add_3 (...)'\n"
        "Cannot load /opt/some/where/libthing.so: see https://example.org/help\n"
    )
    assert summary(text) == "Cannot load libthing.so: see"


def test_summary_is_cut_when_the_text_is_long() -> None:
    assert summary("word " * 200, max_chars=20) == "word word word wo..."


def test_summary_names_the_exception_when_it_says_nothing() -> None:
    assert summary(RuntimeError("")) == "RuntimeError"


def test_read_failure_maps_reasons_when_nodes_and_operators_are_named() -> None:
    failure = ReadFailure(
        RuntimeError(
            "Model wasn't fully converted. Failed operations detailed log:\n"
            "-- Conv-16 with a message:\n"
            "While validating ONNX node '<Node(Conv): first>': Check 'x' failed at src/a.cpp:38:\n"
            "FrontEnd API failed with GeneralFailure:\n"
            "The rank has to be known\n\n"
            "-- Gru-7 with a message:\n"
            "odd direction\n\n"
            "Summary:\n"
            "-- Conversion is failed for: Conv-16, Gru-7\n"
            "-- No conversion rule found for operations: org.example.Foo, Bar-20\n"
        )
    )
    assert failure.by_name == {"first": "The rank has to be known"}
    assert failure.by_op == {
        "Gru": "odd direction",
        "org.example.Foo": "OpenVINO's ONNX reader has no rule for org.example.Foo",
        "Bar": "OpenVINO's ONNX reader has no rule for Bar",
    }


# --- blobs ---------------------------------------------------------------------------------------


def exported(backend: OpenVinoBackend, cpu: Device) -> tuple[bytes, Executable]:
    executable = backend.compile(cpu, dense(), FP32)
    able = executable.ability(CompiledBlob)
    assert able is not None
    return able.blob(), executable


def test_blob_computes_the_same_when_loaded_again(backend: OpenVinoBackend, cpu: Device) -> None:
    blob, executable = exported(backend, cpu)
    loader = backend.ability(BlobLoader)
    assert loader is not None
    again = loader.load_blob(cpu, blob, FP32)
    x = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    assert again.signature == executable.signature
    np.testing.assert_array_equal(np.asarray(again.run([x])[0]), np.asarray(executable.run([x])[0]))
    assert again.blob() != b""  # type: ignore[attr-defined]


@pytest.mark.parametrize("position", [30, 200, -1])
def test_load_blob_tells_damage_when_a_byte_is_changed(
    backend: OpenVinoBackend, cpu: Device, position: int
) -> None:
    blob, _ = exported(backend, cpu)
    damaged = bytearray(blob)
    damaged[position] ^= 0xFF
    with pytest.raises(BackendError, match=rf"the compiled model \({len(blob)} bytes\) is damaged"):
        backend.load_blob(cpu, bytes(damaged), FP32)


def test_load_blob_tells_damage_when_it_is_cut_short(backend: OpenVinoBackend, cpu: Device) -> None:
    blob, _ = exported(backend, cpu)
    with pytest.raises(BackendError, match="is damaged: its checksum differs; compile it again"):
        backend.load_blob(cpu, blob[:-100], FP32)


def test_load_blob_refuses_bytes_when_they_are_no_blob(backend: OpenVinoBackend, cpu: Device) -> None:
    with pytest.raises(BackendError, match="these 7 bytes are no compiled model of openvino's"):
        backend.load_blob(cpu, b"garbage", FP32)


def test_load_blob_refuses_another_precision_when_made_for_fp32(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    if "bf16" not in cpu.precisions:
        pytest.skip("this CPU does not compute in bf16")
    blob, _ = exported(backend, cpu)
    with pytest.raises(
        BackendError, match="was made for precision 'fp32' instead of 'bf16'; compile it again"
    ):
        backend.load_blob(cpu, blob, Configuration.of("bf16"))


def test_cache_dir_keeps_precisions_apart_when_shared(
    backend: OpenVinoBackend, cpu: Device, tmp_path: Path
) -> None:
    if "bf16" not in cpu.precisions:
        pytest.skip("this CPU does not compute in bf16")
    x = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    answers = {}
    for precision in ("fp32", "bf16", "fp32", "bf16"):
        configuration = Configuration.of(precision, {"cache_dir": str(tmp_path)})
        answer = np.asarray(backend.compile(cpu, dense(), configuration).run([x])[0])
        np.testing.assert_array_equal(answers.setdefault(precision, answer), answer)
    assert list(tmp_path.iterdir())
    assert np.abs(answers["fp32"] - answers["bf16"]).max() > 1e-4


# --- advice --------------------------------------------------------------------------------------


def test_diagnose_tells_version_and_missing_devices_when_asked(backend: OpenVinoBackend, cpu: Device) -> None:
    able = backend.ability(Diagnosis)
    assert able is not None
    findings = able.diagnose()
    assert findings[0].severity == "ok"
    assert cpu.name in findings[0].message
    assert {f"OpenVINO {d.id}" for d in backend.discover() if d.unavailable} <= {f.subject for f in findings}
    assert all(finding.advice for finding in findings if finding.severity != "ok")


def test_diagnose_warns_when_the_default_precision_is_lower(cpu: Device) -> None:
    (found,) = [
        finding
        for finding in doctor.examine("1", [cpu_with(cpu, ("fp32", "bf16"))])
        if "default" in finding.subject
    ]
    assert found.message == "on cpu:0, OpenVINO runs fp32 models in bf16 unless told not to"
    none = [f for f in doctor.examine("1", [cpu_with(cpu, ("fp32",))]) if "default" in f.subject]
    assert none == []


@pytest.mark.parametrize(
    ("name", "value", "severity", "words"),
    [
        (
            "ONEDNN_MAX_CPU_ISA",
            "AVX2",
            "warning",
            "limits the vector instructions",
        ),
        ("DNNL_VERBOSE", "1", "problem", "makes OpenVINO's convolutions fail"),
    ],
)
def test_diagnose_warns_when_a_setting_harms(
    cpu: Device, monkeypatch: pytest.MonkeyPatch, name: str, value: str, severity: str, words: str
) -> None:
    assert name not in {finding.subject for finding in doctor.examine("1", [cpu])}
    monkeypatch.setenv(name, value)
    (found,) = [finding for finding in doctor.examine("1", [cpu]) if finding.subject == name]
    assert found.severity == severity
    assert found.message.startswith(f"{name}={value} {words}")
    assert found.advice == f"unset {name}"


def test_diagnose_is_right_about_wide_integers_when_they_overflow(
    backend: OpenVinoBackend, cpu: Device
) -> None:
    wide = TensorProto.INT64
    node = helper.make_node("Add", ["x", "x"], ["y"], name="double")
    graph = graph_of([node], [tensor("x", 1, dtype=wide)], [tensor("y", 1, dtype=wide)])
    (answer,) = backend.compile(cpu, graph, FP32).run([np.array([3_000_000_000], np.int64)])
    told = any("int64 tensors in int32" in finding.message for finding in backend.diagnose())
    assert told == (int(np.asarray(answer)[0]) != 6_000_000_000)


def cpu_with(cpu: Device, precisions: tuple[str, ...]) -> Device:
    return Device(
        id=cpu.id,
        name=cpu.name,
        kind="cpu",
        silicon=cpu.silicon,
        memory_pool=cpu.memory_pool,
        precisions=precisions,
    )
