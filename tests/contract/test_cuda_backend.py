"""The cuda backend where no GPU is needed: reasons, joining PyTorch with NVML, and its texts."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hal.backend import BackendRef, Configuration, Device, Diagnosis, Telemetry
from hal.errors import BackendError
from hal.graph.model import Graph
from hal.testing import BackendConformance
from hal_cuda.backend import CudaBackend, absent, device_of, precisions
from hal_cuda.nvml import Nvml
from tests.contract.nvml_fake import FakeNvml
from tests.contract.test_cpu_backend import dense
from tests.contract.test_cuda_nvml import GEFORCE, H100

NO_DRIVER = (12, "NVML Shared Library Not Found")
cpu_build = pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch is a CUDA build here")


class TestCuda(BackendConformance):
    ref = BackendRef("plugin:cuda")


def shown(**other: object) -> SimpleNamespace:
    fields = {
        "name": "NVIDIA H100",
        "major": 9,
        "minor": 0,
        "total_memory": 80 << 30,
        "multi_processor_count": 132,
    }
    return SimpleNamespace(**{**fields, "uuid": "11aa-22", **other})


def test_plugin_imports_no_framework_when_backend_is_made() -> None:
    code = (
        "import sys, hal_cuda.plugin as p; b = p.hal_backend(); assert b.name == 'cuda'; "
        "assert not {'torch', 'pynvml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@cpu_build
def test_discover_gives_both_reasons_when_pytorch_and_driver_are_missing() -> None:
    (device,) = CudaBackend(FakeNvml(init=NO_DRIVER)).discover()
    assert device.id == "cuda:0"
    assert device.unavailable == (
        f"PyTorch {torch.__version__} is a build without CUDA; no NVIDIA driver (libnvidia-ml was not found)"
    )
    assert "\n" not in device.unavailable


@cpu_build
def test_discover_names_the_gpus_when_only_pytorch_lacks_cuda() -> None:
    devices = CudaBackend(FakeNvml(H100, GEFORCE)).discover()
    assert [(d.id, d.name, d.silicon) for d in devices] == [
        ("cuda:0", "NVIDIA H100", "0000:0b:00.0"),
        ("cuda:1", "GeForce", "0000:65:00.0"),
    ]
    assert {d.unavailable for d in devices} == {f"PyTorch {torch.__version__} is a build without CUDA"}


def test_devices_are_joined_by_uuid_and_not_by_number() -> None:
    gpus = Nvml(FakeNvml(GEFORCE, H100)).gpus()
    device = device_of(0, shown(), gpus, {"driver": "550.54"})  # CUDA_VISIBLE_DEVICES=1
    assert (device.silicon, device.memory_pool) == ("0000:0b:00.0", "GPU-11AA-22")
    assert device.memory_bytes == 80 << 30
    assert device.precisions == ("fp32", "bf16", "fp16")
    assert device.properties["compute_capability"] == "9.0"
    assert device.properties["driver"] == "550.54"


def test_slice_is_its_own_silicon_and_memory() -> None:
    slices = [{"name": "MIG 1g", "uuid": "MIG-11aa-22", "used": 7, "total": 10}]
    gpus = Nvml(FakeNvml({**H100, "uuid": "GPU-0", "slices": slices})).gpus()
    device = device_of(0, shown(), gpus, {})
    assert (device.silicon, device.memory_pool, device.properties["mig"]) == (
        "MIG-11aa-22",
        "MIG-11aa-22",
        True,
    )


def test_device_stands_alone_when_nvml_does_not_know_it() -> None:
    device = device_of(3, shown(uuid=""), (), {})
    assert (device.id, device.silicon, device.memory_pool) == ("cuda:3", "cuda:3", "cuda:3")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((5, 0), ("fp32",)), ((7, 5), ("fp32", "fp16")), ((8, 0), ("fp32", "bf16", "fp16"))],
)
def test_precisions_follow_the_compute_capability(
    capability: tuple[int, int], expected: tuple[str, ...]
) -> None:
    assert precisions(capability) == expected


def test_telemetry_reads_the_gpu_of_the_device() -> None:
    backend = CudaBackend(FakeNvml(GEFORCE, H100))
    ability = backend.ability(Telemetry)
    assert ability is not None
    gpus = Nvml(FakeNvml(GEFORCE, H100)).gpus()
    assert ability.telemetry(device_of(0, shown(), gpus, {}))["temperature_celsius"] == 41
    assert ability.telemetry(device_of(0, shown(uuid="other"), gpus, {})) == {}
    assert CudaBackend(FakeNvml(init=NO_DRIVER)).telemetry(device_of(0, shown(), gpus, {})) == {}


def test_compile_says_why_when_device_is_unavailable() -> None:
    graph: Graph = dense()
    (device,) = absent("no NVIDIA driver", ())
    backend = CudaBackend(FakeNvml(init=NO_DRIVER))
    with pytest.raises(BackendError, match="cuda:0 cannot be used: no NVIDIA driver"):
        backend.compile(device, graph, Configuration.of("fp32"))
    assert {support.reason for support in backend.capability(device, graph, "fp32").values()} == {
        "no NVIDIA driver"
    }


@cpu_build
def test_diagnosis_covers_build_driver_and_each_gpu() -> None:
    backend = CudaBackend(FakeNvml(H100, GEFORCE))
    ability = backend.ability(Diagnosis)
    assert ability is not None
    findings = ability.diagnose()
    subjects = [finding.subject for finding in findings]
    assert subjects[:3] == ["PyTorch for CUDA", "NVIDIA driver", "NVIDIA H100 0000:0b:00.0"]
    assert "GeForce 0000:65:00.0" in subjects
    assert all(isinstance(finding.message, str) and finding.message for finding in findings)


def test_absent_device_is_well_formed() -> None:
    (device,) = absent("no driver", ())
    assert isinstance(device, Device)
    assert (device.kind, device.silicon, device.memory_pool) == ("gpu", "cuda:0", "cuda:0")
