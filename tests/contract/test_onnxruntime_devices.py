"""What the onnxruntime plugin says of providers, options and the runtime itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hal.backend import AsyncRun, BlobLoader, CompiledBlob, Configuration, Diagnosis, KernelTimes, Placements
from hal.errors import BackendError, TargetError
from hal.testing import example_inputs, small_graph, true_outputs
from hal_onnxruntime import diagnosis, libraries, providers, runtime
from hal_onnxruntime.backend import OnnxRuntimeBackend
from hal_onnxruntime.loading import Endpoint, expect_provider, open_session
from hal_onnxruntime.options import choices_of, session_options


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend()


def test_import_loads_no_onnxruntime_when_nothing_is_asked() -> None:
    code = "import sys, hal_onnxruntime.plugin as p; p.hal_backend(); print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_cpu_device_carries_the_agreed_names_when_discovered(backend: OnnxRuntimeBackend) -> None:
    device = next(device for device in backend.discover() if not device.variant)
    assert (device.id, device.kind, device.silicon, device.memory_pool) == ("cpu:0", "cpu", "cpu:0", "host")
    assert device.precisions == ("fp32",)
    assert "bf16" in str(device.properties["precisions"])
    assert not device.unavailable


def test_remote_provider_is_left_out_when_compiled_in(backend: OnnxRuntimeBackend) -> None:
    names = {device.properties["provider"] for device in backend.discover()}
    assert not names & set(providers.NOT_COMPUTE)


def test_missing_package_is_one_unavailable_device_when_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    runtime.onnxruntime.cache_clear()
    try:
        (device,) = OnnxRuntimeBackend().discover()
        assert device.id == "cpu:0"
        assert "onnxruntime cannot be loaded" in device.unavailable
        assert "hal-onnxruntime[cpu]" in device.unavailable
        assert "\n" not in device.unavailable
        with pytest.raises(BackendError, match=r"install one build of it: hal-onnxruntime\[cpu\]"):
            OnnxRuntimeBackend().compile(device, small_graph("add"), Configuration("fp32"))
        (finding,) = OnnxRuntimeBackend().diagnose()
        assert finding.severity == "problem"
        assert finding.advice
    finally:
        runtime.onnxruntime.cache_clear()


def test_library_is_listed_with_the_reason_when_its_file_is_missing(tmp_path: Path) -> None:
    found = OnnxRuntimeBackend({"absent": str(tmp_path / "nothing.so")}).discover()
    device = next(device for device in found if device.variant == "absent")
    assert device.unavailable.endswith("does not load: there is no file nothing.so")
    assert str(tmp_path) not in device.unavailable


def test_library_is_listed_with_the_reason_when_it_is_not_a_library(tmp_path: Path) -> None:
    file = tmp_path / "text.so"
    file.write_text("not a library")
    found = OnnxRuntimeBackend({"text": str(file)}).discover()
    device = next(device for device in found if device.variant == "text")
    assert "the execution provider library 'text' does not load" in device.unavailable
    assert "\n" not in device.unavailable
    assert str(tmp_path) not in device.unavailable
    with pytest.raises(BackendError, match="cannot be used: the execution provider library 'text'"):
        OnnxRuntimeBackend({"text": str(file)}).compile(device, small_graph("add"), Configuration("fp32"))


def test_environment_names_libraries_when_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(libraries.ENVIRONMENT, os.pathsep.join(["one=/a/b.so", "two=/c.so"]))
    files, _ = libraries.known_libraries({"two": "/other.so"})
    assert files["one"] == "/a/b.so"
    assert files["two"] == "/other.so"


def test_environment_is_refused_when_it_is_not_a_list_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(libraries.ENVIRONMENT, "just-a-file.so")
    with pytest.raises(BackendError, match=r"holds 'just-a-file.so'; expected NAME=FILE pairs"):
        libraries.known_libraries({})


def test_installed_package_is_found_when_it_follows_the_convention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in {
        "acme-ep-rocket": "def get_library_path():\n    return '/opt/rocket.so'\n",
        "acme-ep-broken": "def get_library_path():\n    raise OSError('no library for this system')\n",
        "acme-ep-other": "raise RuntimeError('must not be imported')\n",
    }.items():
        module = name.replace("-", "_")
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(body)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    files, broken = libraries.known_libraries({})
    assert files["acme-ep-rocket"] == "/opt/rocket.so"
    assert broken["acme-ep-broken"] == (
        "the package acme-ep-broken does not name its library: no library for this system"
    )
    assert "acme-ep-other" not in {*files, *broken}


def test_unknown_device_is_refused_when_compiling(backend: OnnxRuntimeBackend) -> None:
    device = msgspec.structs.replace(backend.discover()[0], variant="warp")
    with pytest.raises(
        TargetError, match=r"has no device cpu:0/onnxruntime-warp; available: cpu:0/onnxruntime"
    ):
        backend.compile(device, small_graph("add"), Configuration("fp32"))


def test_precision_is_refused_with_the_reason_when_the_provider_lacks_it(backend: OnnxRuntimeBackend) -> None:
    device, graph = backend.discover()[0], small_graph("add")
    with pytest.raises(TargetError, match=r"does not compute in bf16 \(fp16 is emulated.*available: fp32"):
        backend.compile(device, graph, Configuration("bf16"))
    answers = backend.capability(device, graph, "fp16")
    assert not any(answer.yes for answer in answers.values())
    assert all("does not compute in fp16" in answer.reason for answer in answers.values())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"fuse": True},
            "option 'fuse' is unknown; available: threads, inter_threads, optimization, spinning",
        ),
        ({"threads": 0}, "option 'threads' cannot be 0; expected a whole number of 1 or more"),
        ({"threads": True}, "option 'threads' cannot be True; expected a whole number of 1 or more"),
        (
            {"inter_threads": "2"},
            "option 'inter_threads' cannot be '2'; expected a whole number of 1 or more",
        ),
        ({"optimization": "max"}, "cannot be 'max'; expected one of disable, basic, extended, all"),
        ({"spinning": 1}, "option 'spinning' cannot be 1; expected true or false"),
    ],
)
def test_option_is_refused_when_it_is_not_legal(
    backend: OnnxRuntimeBackend, options: dict[str, str | int | float | bool], text: str
) -> None:
    with pytest.raises(TargetError) as caught:
        backend.compile(backend.discover()[0], small_graph("add"), Configuration.of("fp32", options))
    assert text in str(caught.value)


@pytest.mark.parametrize("optimization", ["disable", "basic", "extended", "all"])
@pytest.mark.parametrize("inter_threads", [1, 2])
def test_options_change_no_answer_when_legal(
    backend: OnnxRuntimeBackend, optimization: str, inter_threads: int
) -> None:
    graph = small_graph("residual")
    options = {"optimization": optimization, "inter_threads": inter_threads, "spinning": False, "threads": 2}
    executable = backend.compile(backend.discover()[0], graph, Configuration.of("fp32", options))
    inputs = example_inputs(graph)
    for got, want in zip(executable.run(inputs), true_outputs(graph, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    executable.close()


def test_session_is_given_what_was_asked_when_options_are_set() -> None:
    options = session_options(choices_of(Configuration.of("fp32", {"threads": 3, "spinning": False})))
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16") == "0"


def test_tensorrt_offers_fp32_only_when_tf32_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = providers.provider_of("TensorrtExecutionProvider")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert tensorrt.precisions == ("fp16", "bf16")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert tensorrt.precisions == ("fp32", "fp16", "bf16")


def test_provider_options_pin_the_precision_when_a_session_is_made() -> None:
    cuda = providers.provider_of("CUDAExecutionProvider").session_list("fp32", 1, [])
    assert cuda == [
        ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"}),
        ("CPUExecutionProvider", {}),
    ]
    tensorrt = providers.provider_of("TensorrtExecutionProvider")
    names = [name for name, _ in tensorrt.session_list("fp16", 0, ["CUDAExecutionProvider"])]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert tensorrt.session_list("bf16", 0, [])[0][1]["trt_bf16_enable"] == "1"


def test_unknown_provider_says_so_when_described() -> None:
    provider = providers.provider_of("ContosoAiPluginExecutionProvider", "npu")
    assert (provider.short, provider.device, provider.precisions) == ("contosoai", "npu", ("fp32",))
    assert "no option that pins" in provider.note


def test_session_is_refused_when_the_provider_asked_for_is_left_out() -> None:
    with pytest.raises(BackendError) as caught:
        expect_provider("CUDAExecutionProvider", ["CPUExecutionProvider"])
    assert "CUDAExecutionProvider was asked for, but the session runs on CPUExecutionProvider" in str(
        caught.value
    )
    expect_provider("CPUExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_session_is_refused_when_the_provider_is_unknown_to_the_runtime() -> None:
    options = session_options(choices_of(Configuration("fp32")))
    endpoint = Endpoint(providers.provider_of("AbsentExecutionProvider"))
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(BackendError, match="Unknown Provider"),
    ):
        open_session(small_graph("add").serialized(), options, endpoint, "fp32")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(22) node",
            "Could not find an implementation for Conv(22) node",
        ),
        (
            "2026-11-24 05:55:28.297 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
            "/src/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& Get() "
            "[ONNXRuntimeError] : 1 : "
            "FAIL : Failed to load library /opt/x/libonnxruntime_providers_cuda.so with error: "
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
        ),
        ("Load model from /home/someone/models/m.onnx failed", "Load model from m.onnx failed"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/core/model_load_utils.h:46 void utils::Validate("
            "const std::map<std::string, int>&, bool, int) ONNX Runtime only *guarantees* support for less",
            "ONNX Runtime only *guarantees* support for less",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : two\nlines.", "two lines"),
    ],
)
def test_error_texts_lose_codes_and_folders_when_tidied(raised: str, expected: str) -> None:
    assert runtime.tidy(raised) == expected


def test_old_runtime_is_refused_when_it_tells_no_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "1.19.2"

    monkeypatch.setitem(sys.modules, "onnxruntime", Old)  # type: ignore[arg-type]
    runtime.onnxruntime.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"onnxruntime 1\.19\.2 is too old.*expected 1\.24 or later"):
            runtime.onnxruntime()
    finally:
        runtime.onnxruntime.cache_clear()


def test_two_builds_are_told_apart_when_installed_together() -> None:
    names = ["numpy", "onnxruntime_gpu", "onnxruntime", None, "onnxruntime-extensions"]
    assert diagnosis.installed_builds(names) == ["onnxruntime", "onnxruntime-gpu"]


def test_findings_name_the_version_and_each_provider_when_all_is_well(
    backend: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    found = {finding.subject: finding for finding in backend.diagnose()}
    assert found["ONNX Runtime"].message.startswith("version ")
    assert found["execution provider cpu"].severity == "ok"
    assert found["CUDA_LAUNCH_BLOCKING"].severity == "warning"


def test_abilities_are_those_that_hold_when_asked(backend: OnnxRuntimeBackend) -> None:
    executable = backend.compile(backend.discover()[0], small_graph("add"), Configuration("fp32"))
    for kind in (KernelTimes, Placements, CompiledBlob, AsyncRun):
        assert executable.ability(kind) is executable
    for kind in (BlobLoader, Diagnosis):
        assert backend.ability(kind) is backend
    executable.close()
