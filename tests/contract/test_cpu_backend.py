"""The cpu backend: its device, options, support, advice, and the texts of its errors."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hal.backend import Configuration, Device, DeviceTensors, Diagnosis, KernelTimes, MemoryUse
from hal.errors import BackendError, InputError, TargetError, UnsupportedGraph
from hal.graph.model import Graph
from hal.host import n_usable_cpus
from hal.tensor import HostTensor, as_numpy
from hal_cpu.backend import CpuBackend, precisions, threads_finding
from hal_torch.failures import reason
from hal_torch.precision import forbid_reduced_fp32

FP32 = Configuration.of("fp32")


def tensor(name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
) -> Graph:
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    proto = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def dense() -> Graph:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Relu", ["p"], ["y"], name="rectify"),
    ]
    return graph_of(nodes, [tensor("x", 4, 16)], [tensor("y", 4, 8)], {"w": weight})


def answer(x: np.ndarray) -> np.ndarray:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    return np.maximum(x.astype(np.float64) @ weight, 0)


def example() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


@pytest.fixture(scope="module")
def cpu(backend: CpuBackend) -> Device:
    return backend.discover()[0]


def test_plugin_imports_no_framework_when_backend_is_made() -> None:
    code = (
        "import sys, hal_cpu.plugin as p; b = p.hal_backend(); assert b.name == 'cpu'; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_discover_describes_the_processor(backend: CpuBackend, cpu: Device) -> None:
    assert len(backend.discover()) == 1
    assert (cpu.id, cpu.kind, cpu.silicon, cpu.memory_pool) == ("cpu:0", "cpu", "cpu:0", "host")
    assert cpu.unavailable == ""
    assert cpu.properties["torch"] == torch.__version__
    assert cpu.precisions[0] == "fp32"


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((), ("fp32",)),
        (("avx512f", "avx512_bf16"), ("fp32", "bf16")),
        (("amx_bf16",), ("fp32", "bf16")),
        (("avx512_bf16", "avx512_fp16"), ("fp32", "bf16", "fp16")),
        (("avx512_vnni", "f16c"), ("fp32",)),
    ],
)
def test_precisions_are_those_with_instructions(features: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert precisions(features) == expected


def test_threads_option_defaults_to_usable_cpus(backend: CpuBackend, cpu: Device) -> None:
    options = {spec.name: spec for spec in backend.options(cpu)}
    assert options["threads"].default == n_usable_cpus()
    assert options["mode"].choices == ("eager", "compiled")


def test_threads_are_set_again_when_another_executable_changed_them(backend: CpuBackend, cpu: Device) -> None:
    one = backend.compile(cpu, dense(), Configuration.of("fp32", {"threads": 1}))
    backend.compile(cpu, dense(), Configuration.of("fp32", {"threads": 2}))
    assert torch.get_num_threads() == 2
    one.run([example()])
    assert torch.get_num_threads() == 1


def test_compile_names_all_problems_when_configuration_is_wrong(backend: CpuBackend, cpu: Device) -> None:
    wrong = Configuration.of("fp32", {"mode": "fast", "threads": 0, "streams": 2})
    with pytest.raises(TargetError) as caught:
        backend.compile(cpu, dense(), wrong)
    text = str(caught.value)
    assert "'mode' cannot be 'fast'; expected eager, compiled" in text
    assert "'threads' cannot be 0; expected 1 or more" in text
    assert "'streams' is unknown; expected one of mode, spinning, threads" in text


def test_compile_refuses_when_precision_is_not_native(backend: CpuBackend) -> None:
    device = Device(id="cpu:0", name="Old", kind="cpu", silicon="cpu:0", memory_pool="host")
    with pytest.raises(TargetError, match="precision bf16 on Old; expected one of fp32"):
        backend.compile(device, dense(), Configuration.of("bf16"))
    refused = backend.capability(device, dense(), "bf16")["product"]
    assert not refused.yes
    assert "does not compute in bf16 by itself; expected one of fp32" in refused.reason


def test_compile_refuses_when_device_is_unavailable(backend: CpuBackend, cpu: Device) -> None:
    gone = Device(
        id="cpu:0", name="X", kind="cpu", silicon="cpu:0", memory_pool="host", unavailable="no torch"
    )
    with pytest.raises(BackendError, match="cpu:0 cannot be used: no torch"):
        backend.compile(gone, dense(), FP32)


def test_unknown_operator_is_refused_with_its_reason(backend: CpuBackend, cpu: Device) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["p"], name="fine"),
        helper.make_node("Nothing", ["p"], ["y"], name="odd"),
    ]
    proto = helper.make_graph(nodes, "odd", [tensor("x", 2)], [tensor("y", 2)])
    nodes[1].domain = proto.node[1].domain = "com.example"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    graph = Graph.load(helper.make_model(proto, opset_imports=opsets, ir_version=9))
    support = backend.capability(cpu, graph, "fp32")
    assert support["fine"].yes
    assert "Nothing" in support["odd"].reason
    with pytest.raises(UnsupportedGraph, match="odd"):
        backend.compile(cpu, graph, FP32)


def test_run_answers_in_every_precision_of_the_processor(backend: CpuBackend, cpu: Device) -> None:
    for precision in cpu.precisions:
        executable = backend.compile(cpu, dense(), Configuration.of(precision))
        (y,) = executable.run([example()])
        error = np.linalg.norm(as_numpy(y) - answer(example())) / np.linalg.norm(answer(example()))
        low, high = (0, 1e-6) if precision == "fp32" else (1e-5, 2e-2)
        assert low <= error <= high, precision


def test_fp32_is_ieee_when_process_asked_for_less(backend: CpuBackend, cpu: Device) -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    backend.compile(cpu, dense(), FP32)
    assert torch.get_float32_matmul_precision() == "highest"
    operations = (
        torch.backends.mkldnn.matmul,
        torch.backends.mkldnn.conv,
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,
        torch.backends.cudnn.rnn,
    )
    assert {operation.fp32_precision for operation in operations} == {"ieee"}


def test_older_settings_stay_readable_after_fp32_is_set() -> None:
    forbid_reduced_fp32()  # PyTorch raises at reading where the two kinds of settings contradict
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x,
        lambda x: np.asfortranarray(x),
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: HostTensor(x),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x.repeat(2, axis=1))[:, ::2],
    ],
)
def test_run_reads_any_host_tensor(backend: CpuBackend, cpu: Device, given) -> None:
    (y,) = backend.compile(cpu, dense(), FP32).run([given(example())])
    np.testing.assert_allclose(as_numpy(y), answer(example()), rtol=1e-4, atol=1e-5)


def test_run_reads_read_only_memory_without_a_copy_or_warning(backend: CpuBackend, cpu: Device) -> None:
    x = example()
    x.flags.writeable = False
    (y,) = backend.compile(cpu, dense(), FP32).run([x])
    np.testing.assert_allclose(as_numpy(y), answer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([], "0 inputs were given, 'x' missing; expected 1: x: float32[4, 16]"),
        ([example(), example()], "2 inputs were given, 1 too many; expected 1"),
        ([example()[:2]], "input 'x' is float32[2, 16]; expected x: float32[4, 16]"),
        ([example().astype(np.float64)], "input 'x' is float64[4, 16]; expected x: float32[4, 16]"),
        ([example().astype(ml_dtypes.bfloat16)], "input 'x' is bfloat16[4, 16]; expected x"),
        ([example().astype(">f4")], "input 'x': >f4 array cannot be read by PyTorch"),
        ([3.0], "input 'x': float cannot be read by PyTorch"),
        (
            [np.array(["a"])],
            "expected a numpy array in the machine's byte order or an object with __dlpack__",
        ),
    ],
)
def test_run_names_the_input_when_it_does_not_fit(
    backend: CpuBackend, cpu: Device, inputs, text: str
) -> None:
    executable = backend.compile(cpu, dense(), FP32)
    with pytest.raises(InputError) as caught:
        executable.run(inputs)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ([], "0 outputs were bound; expected 1"),
        ([np.empty((4, 8), np.float64)], "output 'y' is bound to float64[4, 8]; expected float32[4, 8]"),
        ([np.empty((4, 16), np.float32)[:, ::2]], "output 'y' is bound to memory that is read-only or not"),
        ([np.empty((4, 8), np.float32)[::-1]], "output 'y' is bound to memory that is read-only or not"),
        ([7], "output 'y': int cannot be read by PyTorch"),
    ],
)
def test_run_names_the_output_when_it_cannot_be_written(
    backend: CpuBackend, cpu: Device, outputs, text: str
) -> None:
    executable = backend.compile(cpu, dense(), FP32)
    with pytest.raises(InputError) as caught:
        executable.run([example()], outputs)
    assert text in str(caught.value)


def test_run_writes_into_bound_outputs(backend: CpuBackend, cpu: Device) -> None:
    executable = backend.compile(cpu, dense(), FP32)
    ability = executable.ability(DeviceTensors)
    assert ability is not None
    placed = ability.place(np.zeros((4, 8), np.float32))
    for bound in (np.zeros((4, 8), np.float32), placed):
        (y,) = executable.run([example()], [bound])
        assert y is bound
        np.testing.assert_allclose(as_numpy(y), answer(example()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_outputs_share_memory_with_nothing_when_model_hands_its_tensors_through(
    backend: CpuBackend, cpu: Device, mode: str
) -> None:
    weight = np.arange(6, dtype=np.float32)
    nodes = [
        helper.make_node("Identity", ["x"], ["same"], name="same"),
        helper.make_node("Reshape", ["x", "shape"], ["view"], name="view"),
        helper.make_node("Identity", ["w"], ["weight"], name="weight"),
        helper.make_node("Neg", ["x"], ["first"], name="negate"),
        helper.make_node("Reshape", ["first", "shape"], ["second"], name="again"),
    ]
    names = {"same": (6,), "view": (2, 3), "weight": (6,), "first": (6,), "second": (2, 3)}
    outputs = [tensor(name, *shape) for name, shape in names.items()]
    weights = {"w": weight, "shape": np.array([2, 3], np.int64)}
    graph = graph_of(nodes, [tensor("x", 6)], outputs, weights)
    executable = backend.compile(cpu, graph, Configuration.of("fp32", {"mode": mode}))
    x = np.arange(6, dtype=np.float32) + 1
    kept = x.copy()
    first = executable.run([x])
    for output in first:
        as_numpy(output)[...] = 99  # the caller owns it
    np.testing.assert_array_equal(x, kept)
    second = [as_numpy(output).reshape(6) for output in executable.run([x])]
    for got, wanted in zip(second, (x, x, weight, -x, -x), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert all((as_numpy(output) == 99).all() for output in first)


def test_close_forgets_and_run_says_so(backend: CpuBackend, cpu: Device) -> None:
    executable = backend.compile(cpu, dense(), FP32)
    (y,) = executable.run([example()])
    executable.close()
    executable.close()
    np.testing.assert_allclose(as_numpy(y), answer(example()), rtol=1e-4, atol=1e-5)
    with pytest.raises(BackendError, match="the executable of 'small' was closed; compile the graph again"):
        executable.run([example()])
    with pytest.raises(BackendError, match="was closed"):
        executable.kernel_runs([example()], 1)  # type: ignore[attr-defined]


def test_run_says_what_pytorch_raised(backend: CpuBackend, cpu: Device) -> None:
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"], name="pick")]
    weights = {"w": np.zeros((3, 2), np.float32)}
    graph = graph_of(nodes, [tensor("i", 1, dtype=TensorProto.INT64)], [tensor("y", 1, 2)], weights)
    executable = backend.compile(cpu, graph, FP32)
    with pytest.raises(BackendError, match=r"PyTorch could not run 'small' on cpu in fp32: .*index.* out of"):
        executable.run([np.array([9], np.int64)])


def test_abilities_are_those_that_hold(backend: CpuBackend, cpu: Device) -> None:
    executable = backend.compile(cpu, dense(), FP32)
    assert executable.ability(KernelTimes) is executable
    assert executable.ability(MemoryUse) is None
    assert backend.ability(Diagnosis) is backend


def test_compiled_mode_leaves_no_process_and_no_variable(
    backend: CpuBackend, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    configuration = Configuration.of("fp32", {"mode": "compiled", "threads": 2})
    executable = backend.compile(cpu, dense(), configuration)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not [
        child
        for child in psutil.Process().children(recursive=True)
        if "compile_worker" in str(child.cmdline())
    ]
    (y,) = executable.run([example()])
    np.testing.assert_allclose(as_numpy(y), answer(example()), rtol=1e-4, atol=1e-5)


def test_compiled_mode_says_what_is_missing_when_there_is_no_compiler(cpu: Device) -> None:
    code = (
        "from tests.contract.test_cpu_backend import dense, CpuBackend, Configuration\n"
        "b = CpuBackend()\n"
        "print([f.message for f in b.diagnose() if f.severity != 'ok'])\n"
        "b.compile(b.discover()[0], dense(), Configuration.of('fp32', {'mode': 'compiled'}))\n"
    )
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": empty}
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
    assert found.returncode == 1
    assert "no-such-compiler was not found: mode=compiled cannot be used" in found.stdout
    last = found.stderr[found.stderr.rindex("hal.errors.BackendError") :]
    assert "Inductor cannot compile the model" in last
    assert "InvalidCxxCompiler" in last
    assert "Use mode=eager" in last


def test_failures_keep_compiler_errors_and_drop_folders() -> None:
    error = RuntimeError(
        "C++ compile error\n\nCommand:\n/usr/bin/g++ -O3 /tmp/x/y.cpp\nOutput:\n"
        "/tmp/x/y.cpp:3:1: error: 'foo' was not declared\n  3 | foo();\n"
    )
    assert reason(error) == "RuntimeError: y.cpp:3:1: error: 'foo' was not declared"
    assert reason(ValueError("")) == "ValueError"
    assert (
        reason(ValueError("cannot open /home/someone/model.onnx\nmore"))
        == "ValueError: cannot open model.onnx"
    )


@pytest.mark.parametrize(
    ("variable", "severity", "message"),
    [
        (None, "ok", "4, as many as this process may use"),
        ("4", "ok", "OMP_NUM_THREADS is 4"),
        ("64", "note", "OMP_NUM_THREADS is 64 and 4 processors may be used"),
    ],
)
def test_threads_finding_compares_with_usable_cpus(variable: str | None, severity: str, message: str) -> None:
    finding = threads_finding(variable, 4)
    assert finding.severity == severity
    assert message in finding.message
    assert bool(finding.advice) == (severity != "ok")


def test_diagnosis_gives_advice_for_all_that_is_not_ok(backend: CpuBackend) -> None:
    findings = backend.diagnose()
    assert {"PyTorch", "threads of PyTorch", "oneDNN", "C++ compiler"} == {f.subject for f in findings}
    assert all(finding.advice or finding.severity == "ok" for finding in findings)


def test_compiled_mode_takes_both_branches_of_an_if(backend: CpuBackend, cpu: Device) -> None:
    branches = {
        name: helper.make_graph([helper.make_node(op, ["x"], [name], name=name)], name, [], [tensor(name, 3)])
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        helper.make_node("Greater", ["flag", "zero"], ["yes"], name="compare"),
        helper.make_node(
            "If", ["yes"], ["y"], name="choose", then_branch=branches["then"], else_branch=branches["else"]
        ),
    ]
    inputs = [tensor("x", 3), tensor("flag", dtype=TensorProto.INT64)]
    graph = graph_of(nodes, inputs, [tensor("y", 3)], {"zero": np.array(0, np.int64)})
    executable = backend.compile(cpu, graph, Configuration.of("fp32", {"mode": "compiled"}))
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    for flag, wanted in ((1, np.maximum(x, 0)), (0, -x)):
        (y,) = executable.run([x, np.array(flag)])
        np.testing.assert_array_equal(as_numpy(y), wanted)


def test_compiled_mode_waits_for_real_inputs_when_made_up_ones_cannot_run(
    backend: CpuBackend, cpu: Device
) -> None:
    nodes = [helper.make_node("Expand", ["x", "shape"], ["y"], name="expand")]
    inputs = [tensor("x", 3), tensor("shape", 2, dtype=TensorProto.INT64)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])
    executable = backend.compile(
        cpu, graph_of(nodes, inputs, [output]), Configuration.of("fp32", {"mode": "compiled"})
    )
    x = np.array([1.0, 2.0, 3.0], np.float32)
    (y,) = executable.run([x, np.array([2, 3])])
    np.testing.assert_array_equal(as_numpy(y), np.broadcast_to(x, (2, 3)))
