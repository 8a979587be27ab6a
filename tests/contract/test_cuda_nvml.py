"""What hal_cuda makes of NVML's answers, on a hand-written NVML."""

from __future__ import annotations

from typing import Any

import pytest

from hal_cuda.findings import build_finding, driver_finding, gpu_findings
from hal_cuda.nvml import Gpu, Nvml, NvmlFailure, Readings, same
from tests.contract.nvml_fake import FakeNvml

H100: dict[str, Any] = {
    "name": "NVIDIA H100", "uuid": b"GPU-11AA-22", "pci": b"00000000:0B:00.0", "power": 123_456,
    "celsius": 41, "mhz": 1980, "max_mhz": 1980, "used": 5 << 30, "total": 80 << 30, "load": 37,
    "ecc": 1, "persistence": 1, "power_limit": 700_000, "reasons": 0x1, "energy": 9_000,
}  # fmt: skip
GEFORCE: dict[str, Any] = {
    "name": b"GeForce", "uuid": "GPU-33", "pci": "00000000:65:00.0", "celsius": 60, "used": 1, "total": 2,
    "persistence": 0, "reasons": 0x24,
}  # fmt: skip


def test_readings_are_in_base_units() -> None:
    nvml = Nvml(FakeNvml(H100))
    (gpu,) = nvml.gpus()
    assert (gpu.name, gpu.uuid, gpu.pci, gpu.silicon) == (
        "NVIDIA H100", "GPU-11AA-22", "0000:0b:00.0", "0000:0b:00.0"
    )  # fmt: skip
    assert nvml.readings(gpu).numbers() == {
        "power_mw": 123_456,
        "temperature_celsius": 41,
        "clock_hz": 1_980_000_000,
        "memory_used_bytes": 5 << 30,
        "utilisation_percent": 37,
        "energy_total_mj": 9_000,
    }


def test_reading_is_missing_with_its_reason_when_not_supported() -> None:
    nvml = Nvml(FakeNvml(GEFORCE))
    told = nvml.readings(nvml.gpus()[0])
    assert set(told.values) == {"temperature_celsius", "memory_used_bytes"}
    assert told.missing["power_mw"] == "Not Supported"


def test_slices_stand_for_the_gpu_when_mig_is_on() -> None:
    slices = [{"name": "H100 MIG 1g.10gb", "uuid": f"MIG-{i}", "used": 7, "total": 10} for i in range(2)]
    nvml = Nvml(FakeNvml({**H100, "slices": slices}, {**GEFORCE, "slices": []}))
    first, second, whole = nvml.gpus()
    assert (first.is_mig, first.silicon, second.silicon) == (True, "MIG-0", "MIG-1")
    assert not whole.is_mig
    assert nvml.readings(first).numbers() == {"memory_used_bytes": 7}  # the whole GPU's power is not its own


def test_lost_gpu_is_left_out() -> None:
    assert [gpu.name for gpu in Nvml(FakeNvml({"lost": True}, H100)).gpus()] == ["NVIDIA H100"]


@pytest.mark.parametrize(
    ("init", "text"),
    [
        ((12, "NVML Shared Library Not Found"), "no NVIDIA driver (libnvidia-ml was not found)"),
        ((9, "Driver Not Loaded"), "the NVIDIA driver answers with error 9: Driver Not Loaded"),
        ((18, "version mismatch"), "the NVIDIA driver answers with error 18: version mismatch"),
    ],
)
def test_nvml_says_why_it_cannot_start(init: tuple[int, str], text: str) -> None:
    with pytest.raises(NvmlFailure) as caught:
        Nvml(FakeNvml(init=init))
    assert str(caught.value) == text


def test_gpus_says_why_when_they_cannot_be_counted() -> None:
    api = FakeNvml(H100)
    api.count = (999, "Unknown Error")
    with pytest.raises(NvmlFailure, match="error 999: Unknown Error"):
        Nvml(api).gpus()


def test_uuids_are_the_same_whatever_their_prefix() -> None:
    assert same("GPU-11AA-22", "11aa-22")
    assert same("MIG-5", "5")
    assert not same("GPU-1", "GPU-2")
    assert not same("", "")


def test_findings_tell_what_costs_speed() -> None:
    nvml = Nvml(FakeNvml(GEFORCE))
    (gpu,) = nvml.gpus()
    found = {finding.message: finding for finding in gpu_findings(gpu, nvml.settings(gpu))}
    assert any("persistence mode is off" in message for message in found)
    assert "clocks are lowered now by: power limit, software thermal slowdown" in found
    assert any("ecc not told (Not Supported)" in message for message in found)
    assert all(finding.advice or finding.severity == "ok" for finding in found.values())


def test_findings_say_ecc_and_nothing_else_when_all_is_well() -> None:
    nvml = Nvml(FakeNvml(H100))
    (gpu,) = nvml.gpus()
    (finding,) = gpu_findings(gpu, nvml.settings(gpu))
    assert (finding.severity, finding.message) == ("ok", "ECC on")


def test_finding_notes_a_slice() -> None:
    gpu = Gpu(None, "H100 MIG", "MIG-1", "0000:0b:00.0", is_mig=True)
    assert any("MIG is on" in finding.message for finding in gpu_findings(gpu, Readings({}, {})))


@pytest.mark.parametrize(
    ("failure", "system", "cuda", "severity", "message"),
    [
        ("no NVIDIA driver", {}, "12.6", "note", "no NVIDIA driver"),
        (
            "",
            {"driver": "550.54", "cuda_version": 12040},
            "12.6",
            "ok",
            "version 550.54, supports CUDA up to 12.4",
        ),
        (
            "",
            {"driver": "470.1", "cuda_version": 11040},
            "12.6",
            "problem",
            "PyTorch was built for CUDA 12.6",
        ),
        ("", {"driver": "550.54"}, "12.6", "ok", "version 550.54"),
        ("", {"driver": "550.54", "cuda_version": 12040}, "", "ok", "supports CUDA up to 12.4"),
    ],
)
def test_driver_finding_compares_versions(
    failure: str, system: dict[str, Any], cuda: str, severity: str, message: str
) -> None:
    finding = driver_finding(failure, system, cuda)
    assert finding.severity == severity
    assert message in finding.message


def test_build_finding_tells_cpu_builds_apart() -> None:
    assert build_finding("2.13.0+cpu", "").message == "version 2.13.0+cpu is a build without CUDA"
    assert "built for CUDA 12.6" in build_finding("2.13.0", "12.6").message
    assert build_finding("", "").severity == "problem"
