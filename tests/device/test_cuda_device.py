"""PyTorch on a real NVIDIA GPU; skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hal
from hal.backend import AsyncRun, Configuration, Device, DeviceTensors, DeviceTime, MemoryUse
from hal.tensor import as_numpy
from hal_cuda.backend import CudaBackend
from tests.contract.test_cpu_backend import answer, dense, example


@pytest.fixture(scope="module")
def backend() -> CudaBackend:
    return CudaBackend()


@pytest.fixture(scope="module")
def gpu(backend: CudaBackend) -> Device:
    device = backend.discover()[0]
    if device.unavailable:
        pytest.skip(device.unavailable)
    return device


def error(y: object) -> float:
    wanted = answer(example())
    return float(np.linalg.norm(as_numpy(y) - wanted) / np.linalg.norm(wanted))


def test_gpu_answers_in_every_precision(backend: CudaBackend, gpu: Device) -> None:
    for precision in gpu.precisions:
        (y,) = backend.compile(gpu, dense(), Configuration.of(precision)).run([example()])
        low, high = (0, 1e-6) if precision == "fp32" else (1e-5, 2e-2)
        assert low <= error(y) <= high, precision


def test_compiled_mode_answers_and_maps_its_kernels(backend: CudaBackend, gpu: Device) -> None:
    executable = backend.compile(gpu, dense(), Configuration.of("fp32", {"mode": "compiled"}))
    assert error(executable.run([example()])[0]) <= 1e-6
    found = executable.kernel_runs([example()], 3)  # type: ignore[attr-defined]
    assert {name for kernel in found.kernels for name in kernel.nodes} == {"product", "rectify"}
    assert all(min(kernel.durations_ns) > 0 for kernel in found.kernels)


def test_eager_kernels_fit_into_the_run(backend: CudaBackend, gpu: Device) -> None:
    executable = backend.compile(gpu, dense(), Configuration.of("fp32"))
    found = executable.kernel_runs([example()], 3)  # type: ignore[attr-defined]
    assert [kernel.nodes for kernel in found.kernels] == [("product",), ("rectify",)]
    for run, total_ns in enumerate(found.run_ns):
        # CUDA events tell time in steps of about 500 ns.
        assert sum(kernel.durations_ns[run] for kernel in found.kernels) <= total_ns + 2_000


def test_outputs_stay_on_the_gpu_when_bound_there(backend: CudaBackend, gpu: Device) -> None:
    executable = backend.compile(gpu, dense(), Configuration.of("fp32"))
    ability = executable.ability(DeviceTensors)
    assert ability is not None
    placed = ability.place(example())
    bound = ability.place(np.zeros((4, 8), np.float32))
    (y,) = executable.run([placed], [bound])
    assert y is bound
    assert y.__dlpack_device__()[0] == 2  # DLPack: kDLCUDA
    assert error(y.cpu()) <= 1e-6  # type: ignore[attr-defined]


def test_runs_can_be_submitted_timed_and_weighed(backend: CudaBackend, gpu: Device) -> None:
    executable = backend.compile(gpu, dense(), Configuration.of("fp32"))
    submit, timed, memory = (executable.ability(kind) for kind in (AsyncRun, DeviceTime, MemoryUse))
    assert submit is not None
    assert timed is not None
    assert memory is not None
    pending = [submit.submit([example()]) for _ in range(4)]
    assert all(error(run.wait()[0]) <= 1e-6 for run in pending)
    assert timed.timed_run([example()]) > 0
    assert memory.memory_bytes() >= 16 * 8 * 4


def test_telemetry_tells_temperature_and_memory(backend: CudaBackend, gpu: Device) -> None:
    told = backend.telemetry(gpu)
    assert told["memory_used_bytes"] > 0


@pytest.mark.parametrize("target", ["cuda:0/cuda/fp32", "cuda:0/onnxruntime/fp32"])
def test_a_sessions_tensors_stay_on_the_gpu(
    gpu: Device, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if target.startswith("cuda:0/onnxruntime"):
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has no CUDA")
    monkeypatch.setenv("HAL_HOME", str(tmp_path))
    with hal.compile(dense(), [example()], targets=[target]) as session:
        x = torch.from_numpy(example()).to("cuda:0")
        session(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            y = session(x)
        assert y.device == x.device
        assert error(y.cpu().numpy()) <= 1e-6
        copies = [event.key for event in seen.key_averages() if "HtoD" in event.key or "DtoH" in event.key]
        assert copies == []
