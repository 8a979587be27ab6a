"""What ``hal doctor`` says about OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hal import host
from hal.backend import Device, Finding

# Read by the oneDNN inside OpenVINO; the effects were seen with OpenVINO 2026.4.
_SLOWS = "limits the vector instructions that OpenVINO's kernels use"
_BREAKS = 'makes OpenVINO\'s convolutions fail with "could not execute a primitive"'
_SETTINGS = {
    "ONEDNN_MAX_CPU_ISA": ("warning", _SLOWS),
    "DNNL_MAX_CPU_ISA": ("warning", _SLOWS),
    "ONEDNN_VERBOSE": ("problem", _BREAKS),
    "DNNL_VERBOSE": ("problem", _BREAKS),
}


def examine(version: str, devices: Sequence[Device]) -> list[Finding]:
    """Version, devices, default precision, threads and settings; one finding each."""
    usable = [device for device in devices if not device.unavailable]
    findings = [
        Finding(
            severity="ok",
            subject="OpenVINO",
            message=f"version {version} on {', '.join(f'{d.id} ({d.name})' for d in usable) or 'no device'}",
        )
    ]
    findings += [
        Finding(
            severity="note",
            subject=f"OpenVINO {device.id}",
            message=device.unavailable,
            advice="install the device's driver and compute runtime, if the machine has such a device",
        )
        for device in devices
        if device.unavailable
    ]
    findings += [
        Finding(
            severity="note",
            subject="OpenVINO's default precision",
            message=f"on {device.id}, OpenVINO runs fp32 models in {device.precisions[1]} unless told not to",
            advice=(
                "hal always sets INFERENCE_PRECISION_HINT; programs of your own should, "
                "or their answers change with the processor"
            ),
        )
        for device in usable
        if len(device.precisions) > 1
    ]
    findings += [
        Finding(
            severity=severity,
            subject=name,
            message=f"{name}={os.environ[name]} {effect}",
            advice=f"unset {name}",
        )
        for name, (severity, effect) in _SETTINGS.items()
        if os.environ.get(name, "") not in ("", "0")
    ]
    findings += [
        Finding(
            severity="note",
            subject="OpenVINO's wide types",
            message=f"on {device.id}, OpenVINO computes int64 tensors in int32, float64 tensors in float32",
            advice="use another backend for models that count beyond 2147483647 or need float64",
        )
        for device in usable
        if device.kind == "cpu"
    ]
    n_usable, n_cpus = host.n_usable_cpus(), os.cpu_count() or 1
    if n_usable < n_cpus:
        findings.append(
            Finding(
                severity="note",
                subject="OpenVINO threads",
                message=f"this process may use {n_usable} of {n_cpus} cores; OpenVINO by itself counts all",
                advice="hal limits OpenVINO to them; elsewhere set INFERENCE_NUM_THREADS",
            )
        )
    return findings
