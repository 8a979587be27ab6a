"""Judging drivers, versions and settings of NVIDIA GPUs for ``hal doctor``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

from hal.backend import Finding
from hal_cuda.nvml import Gpu, Readings


def build_finding(version: str, cuda: str) -> Finding:
    """Whether PyTorch is there and built for CUDA.

    Args:
        version: PyTorch's; empty where it cannot be imported.
        cuda: The CUDA it was built for, ``12.6``; empty for none.
    """
    subject = "PyTorch for CUDA"
    if not version:
        return Finding(
            severity="problem",
            subject=subject,
            message="PyTorch cannot be imported",
            advice="reinstall torch",
        )
    if not cuda:
        return Finding(
            severity="note",
            subject=subject,
            message=f"version {version} is a build without CUDA",
            advice="to use an NVIDIA GPU install a CUDA build of torch; without one nothing is to be done",
        )
    compiled = (
        "" if importlib.util.find_spec("triton") else "; mode=compiled needs triton, which is not installed"
    )
    return Finding(
        severity="note" if compiled else "ok",
        subject=subject,
        message=f"version {version}, built for CUDA {cuda}{compiled}",
        advice="install triton" if compiled else "",
    )


def driver_finding(failure: str, system: Mapping[str, int | str | bool], cuda: str) -> Finding:
    """Whether the driver is there and new enough for PyTorch's CUDA.

    A driver runs any CUDA of its own major version, and older ones.
    Source: NVIDIA CUDA Compatibility, "Minor Version Compatibility".

    Args:
        failure: Why NVML cannot be used; empty where it can.
        system: Readings ``driver`` and ``cuda_version``.
        cuda: The CUDA that PyTorch was built for, ``12.6``; empty for none.
    """
    subject = "NVIDIA driver"
    if failure:
        return Finding(
            severity="note",
            subject=subject,
            message=failure,
            advice="to use an NVIDIA GPU install its driver, and give containers access to it",
        )
    driver = system.get("driver", "unknown")
    newest = system.get("cuda_version")
    if not isinstance(newest, int):
        return Finding(severity="ok", subject=subject, message=f"version {driver}")
    major, minor = newest // 1000, newest % 1000 // 10
    message = f"version {driver}, supports CUDA up to {major}.{minor}"
    if cuda and int(cuda.partition(".")[0]) > major:
        return Finding(
            severity="problem",
            subject=subject,
            message=f"{message}; PyTorch was built for CUDA {cuda}",
            advice=f"update the driver, or install a build of torch for CUDA {major}",
        )
    return Finding(severity="ok", subject=subject, message=message)


def gpu_findings(gpu: Gpu, settings: Readings) -> Iterator[Finding]:
    """What a GPU's settings cost."""
    subject = f"{gpu.name} {gpu.silicon}"
    told = settings.values
    if gpu.is_mig:
        yield Finding(
            severity="note",
            subject=subject,
            message="MIG is on: this is a slice of a GPU; power and load of a slice are not told",
            advice="turn MIG off to use the whole GPU",
        )
    if told.get("persistence") is False:
        yield Finding(
            severity="note",
            subject=subject,
            message="persistence mode is off: the first use after idling waits for the driver",
            advice="nvidia-smi -pm 1",
        )
    if told.get("slowed_by"):
        yield Finding(
            severity="warning",
            subject=subject,
            message=f"clocks are lowered now by: {told['slowed_by']}",
            advice="check cooling and power supply before measuring",
        )
    facts = [f"ECC {'on' if told['ecc'] else 'off'}"] if "ecc" in told else []
    facts += [f"{name} not told ({reason})" for name, reason in settings.missing.items()]
    yield Finding(severity="ok", subject=subject, message="; ".join(facts) or "nothing to report")
